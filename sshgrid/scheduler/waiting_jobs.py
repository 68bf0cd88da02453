"""Jobs that cannot start yet: how long each one waits at least, and which of them will never start."""

from __future__ import annotations

from collections.abc import Sequence

from sshgrid.clock import Clock
from sshgrid.model import Cancelled, GaveUp, Job, JobId, Struct, Submission, Verdict, is_task
from sshgrid.nodes import NodePool
from sshgrid.policy import placement
from sshgrid.policy.placement import NodeView
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.keyboards import Keyboards

# A new job waits at most this long for nodes that are still being dialled or tested.
DECIDE_SECONDS = 3.0
# An attached job gives up when every node that could run it has been down for this long.
ALL_DOWN_SECONDS = 5.0


class Prospect(Struct, frozen=True):
    """Why jobs of one kind cannot start."""

    impossible: GaveUp | None = None  # no node can ever run them; None = some node may
    all_down: GaveUp | None = None  # all nodes that could run them are down; None = some node is up


class WaitingJobs:
    """What the scheduler asks about jobs that wait."""

    def __init__(
        self, active_jobs: ActiveJobs, pool: NodePool, sweeps: ActiveSweeps, keyboards: Keyboards, clock: Clock
    ) -> None:
        self._active_jobs = active_jobs
        self._pool = pool
        self._sweeps = sweeps
        self._keyboards = keyboards
        self._clock = clock
        self._since = clock.wall()  # when this master started
        # When each backoff was first seen, on the monotonic clock; by job and end of its backoff.
        self._backoffs: dict[tuple[JobId, float], float] = {}

    # --- how long they wait

    def backoff_seconds(self, waiting: Sequence[Job], now: float) -> dict[JobId, float]:
        """Seconds that jobs still back off: at most the policy's longest backoff, however the wall clock jumps."""
        longest, clock = self._pool.shared.retry.backoff_max_seconds, self._clock.monotonic()
        backing_off = {(job.id, job.not_before): job for job in waiting if job.not_before > now}
        self._backoffs = {key: self._backoffs.get(key, clock) for key in backing_off}
        rests = {job.id: self._backoffs[key] + longest - clock for key, job in backing_off.items()}
        return {job.id: min(job.not_before - now, rests[job.id]) for job in backing_off.values() if rests[job.id] > 0}

    def undecided_seconds(self, job: Job, now: float) -> float:
        """How long this job still waits for nodes that are being dialled or tested; 0 = it can choose now."""
        language = job.submission.program.language
        self._pool.want(language)
        rest = max(job.submitted, self._since) + DECIDE_SECONDS - now
        if rest <= 0 or job.attempts or not self._pool.undecided(language):
            return 0.0
        return max(0.05, rest)

    # --- which of them end now

    def prospect(self, views: Sequence[NodeView], submission: Submission) -> Prospect:
        """What the nodes offer to jobs of this kind."""
        impossible = placement.permanently_impossible(views, submission, self._pool.shared.languages)
        if impossible:
            return Prospect(GaveUp(impossible[1], no_toolchain=impossible[0] == "NoToolchain"))
        if not placement.all_down(views, submission):
            return Prospect()
        return Prospect(all_down=GaveUp("no node that can take the job is up: " + self._reasons(views, submission)))

    def finish_hopeless(self, job: Job, prospect: Prospect, now: float) -> bool:
        """Finish a job that is cancelled, or will never start; False when it continues to wait."""
        verdict = self._hopeless(job, prospect, now)
        if verdict is None:
            return False
        self._active_jobs.store.finish(job.id, verdict, now)
        self._sweeps.remove(job.id)
        self._keyboards.remove(job.id)
        self._active_jobs.reread(job.id)
        return True

    def _hopeless(self, job: Job, prospect: Prospect, now: float) -> Verdict | None:
        if job.cancel_requested:
            return Cancelled(job.cancel_by)
        if prospect.impossible:
            # A task that has never started waits with its sweep: it has no row in the store to finish.
            return None if is_task(job.id) and not job.attempts else prospect.impossible
        since = max(job.submitted, self._since, job.attempts[-1].ended or 0.0 if job.attempts else 0.0)
        waited = now - since > (self._pool.shared.retry.patience_min_seconds if job.attempts else ALL_DOWN_SECONDS)
        return prospect.all_down if waited and prospect.all_down and not job.submission.wait_for_nodes else None

    def _reasons(self, views: Sequence[NodeView], submission: Submission) -> str:
        why = placement.explain(views, submission, (), self._pool.shared.languages)
        return "; ".join(f"{line.node}: {line.reason.partition(': ')[2]}" for line in why)
