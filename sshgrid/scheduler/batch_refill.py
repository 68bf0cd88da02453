"""What happens in the slots of sweeps when their batches are nearly over, or others have nothing to do.

A batch that is nearly over gets the next tasks of its sweep behind its last ones, so that no node waits for a master;
but only when it would be that sweep's turn, else its slot is given away. When a sweep has nothing left to begin, what
waits behind long tasks is taken back for the slots that are free. Refuses to begin a task on a slow node when
the others would be done with all of them before it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from sshgrid.model import AttemptRecord, Job, JobId
from sshgrid.policy import placement
from sshgrid.policy.placement import NodeView
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.batch_attempts import BatchAttempts
from sshgrid.scheduler.batches import BatchSink
from sshgrid.scheduler.sweep_state import LONG_SECONDS, SweepState
from sshgrid.sweeps.estimates import Outlook, Slot, rest_seconds, slot_in_use

# A batch is nearly over when it is for so long: a look at the node, a step of ours and the way back must fit in, also
# when the master is busy. Others need not wait for that, as what has not begun can be taken back.
AHEAD_SECONDS = 1.5
# A start takes about as long: who gets the slot then comes when it is free.
RELEASE_SECONDS = 0.15
# What is taken back must end earlier by so much.
GAIN_SECONDS = 0.5
LEVEL_SECONDS = 0.5


class BatchRefill:
    """For one step of the scheduler."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        batches: BatchAttempts,
        sweeps: ActiveSweeps,
        views: Sequence[NodeView],
        running: Mapping[str, int],  # slots of each user
        seen_by: Callable[[Sequence[NodeView], str], Sequence[NodeView]],  # the nodes as this user finds them
    ) -> None:
        self._active_jobs = active_jobs
        self._batches = batches
        self._sweeps = sweeps
        self._running = Counter(running)
        self._seen_by = seen_by
        self._outlooks: dict[JobId, Outlook] = {}
        self._nodes: dict[tuple[placement.Needs, frozenset[str]], Collection[str]] = {}
        self._free_ends: dict[JobId, Sequence[tuple[float, str]]] = {}
        self._views: Mapping[str, NodeView] = {}
        self.see(views)
        self._promised: dict[BatchSink, bool] = {}  # to jobs of others; and whether it is their turn already
        self._nearly_over = [sink for sink in batches.holding_slots if self._is_nearly_over(sink)]

    def see(self, views: Sequence[NodeView]) -> None:
        """The nodes as they are now."""
        self._views = {view.node.name: view for view in views}
        self._free_ends.clear()
        self._nodes.clear()

    # --- batches that are nearly over

    def _is_nearly_over(self, sink: BatchSink) -> bool:
        if not sink.takes_more or sink.joining:
            return False
        if not sink.rest:
            return sink.keep_warm
        takes = self._takes(sink)
        if takes is None or takes > LONG_SECONDS:
            return False
        return len(sink.rest) == 1 or len(sink.rest) * takes < AHEAD_SECONDS

    def _takes(self, sink: BatchSink) -> float | None:
        state = self._state(sink)
        return None if state is None else state.seconds_on(sink.node)

    def _state(self, sink: BatchSink) -> SweepState | None:
        return None if sink.sweep is None else self._sweeps.state(sink.sweep)

    def nearly_free(self) -> Mapping[JobId, int]:
        """Of each sweep, how many of the slots that it uses could go on with it."""
        counts: dict[JobId, int] = {}
        for sink in self._nearly_over:
            if sink.sweep is not None and not sink.idle:
                counts[sink.sweep] = counts.get(sink.sweep, 0) + 1
        return counts

    def __len__(self) -> int:
        return len(self._nearly_over)

    def wake(self, job: Job, now: float) -> bool:
        """Begin a job in a batch of its own sweep that has done all and waits for more."""
        state = self._sweeps.state(job.id)
        if state is None or job.attempts or not state.may_begin:
            return False
        idle = [sink for sink in self._nearly_over if sink.idle and self._state(sink) is state]
        if not idle:
            return False
        # Their user has no run there at this moment: a group may be closed meanwhile.
        views = self._seen_by(list(self._views.values()), job.owner)
        nodes = placement.could_follow(views, job.submission, job.excluded)
        return any(self._extend(sink, job, now) for sink in idle if sink.node in nodes)

    def go_on(self, job: Job, now: float, *, own_only: bool = False) -> bool:
        """Begin a job that finds no free slot behind a batch of its own sweep. False: it waits for a slot to be free.

        That may be the one of another sweep's batch, which nobody goes on in then.
        """
        state = self._sweeps.state(job.id)
        if not self._batches.holding_slots:
            return False
        nodes = self._nodes_for(job)
        for sink in list(self._nearly_over):
            is_own = state is not None and not job.attempts and self._state(sink) is state and not sink.idle
            if is_own and sink.node in nodes and self._extend(sink, job, now):
                return True
        if not own_only:
            self._promise(job, state, nodes)
        return False

    def _promise(self, job: Job, state: SweepState | None, nodes: Collection[str]) -> None:
        """The slot of another sweep's batch, of all that will be free the first, is this job's next."""
        others = [sink for sink in self._batches.holding_slots if state is None or self._state(sink) is not state]
        theirs = [sink for sink in others if sink not in self._promised and sink.node in nodes]
        if theirs:
            soonest = min(theirs, key=self._left_seconds)
            self._promised[soonest] = self._comes_before(job, soonest)
            if soonest in self._nearly_over:
                self._nearly_over.remove(soonest)

    def _comes_before(self, job: Job, sink: BatchSink) -> bool:
        """Whether it is the job's turn before what waits in that batch: the order in which both would begin."""
        state = self._state(sink)
        if state is None:
            return False
        theirs = state.job
        if job.submission.priority != theirs.submission.priority:
            return job.submission.priority > theirs.submission.priority
        if job.owner == theirs.owner:
            return job.submitted < theirs.submitted
        return self._running[job.owner] + 1 < self._running[theirs.owner]

    def _nodes_for(self, job: Job) -> Collection[str]:
        """Where it could begin when a slot were free; one look at all nodes for all batches and jobs alike."""
        key = placement.needs(job.submission), job.excluded
        if key not in self._nodes:
            self._nodes[key] = placement.could_follow(list(self._views.values()), job.submission, job.excluded)
        return self._nodes[key]

    def _extend(self, sink: BatchSink, job: Job, now: float) -> bool:
        state = self._state(sink)
        assert state is not None
        tasks = state.batch(job, self._sweeps.slots)
        if not tasks or not self._worth(state, sink.node, self._left_seconds(sink)):
            return False
        self._nearly_over.remove(sink)
        record = AttemptRecord(1, sink.node, now, batch=sink.name)
        begun = self._active_jobs.claims.begin_tasks(tasks, record)
        self._batches.extend(sink, begun, keep_warm=self._sweeps.goes_on(job.id))
        return True

    def release(self) -> None:
        """Give the slots away that another's job waits for, while the last tasks there run, or where no more will."""
        for sink in self._batches.holding_slots:
            if sink.idle and not (sink.sweep and self._sweeps.goes_on(sink.sweep)):
                self._batches.release(sink)
        for sink in self._promised:
            takes = self._takes(sink)
            if not sink.rest or (takes is not None and len(sink.rest) * takes < RELEASE_SECONDS):
                self._batches.release(sink)

    def _left_seconds(self, sink: BatchSink) -> float:
        """Until the last task of a batch ends."""
        if not sink.rest:
            return 0.0
        takes = self._takes(sink)
        if takes is None:
            return LONG_SECONDS
        return (len(sink.rest) - 1) * takes + rest_seconds(takes, sink.ran_seconds)

    # --- slow nodes

    def worthwhile(self, job: Job, views: Sequence[NodeView]) -> list[NodeView]:
        """The nodes where a job should begin, if it can; for a task of a sweep not those that would keep it waiting."""
        state = self._sweeps.state(job.id)
        if state is None or job.id > 0:
            return list(views)
        if not state.may_begin:
            return []
        if job.attempts:  # a node has failed it: wherever it goes now, it is late already
            return list(views)
        return [view for view in views if self._worth(state, view.node.name)]

    def _worth(self, state: SweepState, node: str, free_in_seconds: float = 0.0) -> bool:
        takes = state.seconds_on(node)
        if takes is None or state.waiting > 4 * self._sweeps.slots:
            return True
        return self._outlook(state).worth(Slot(takes, free_in_seconds), state.waiting)

    def _outlook(self, state: SweepState) -> Outlook:
        sweep = state.job.id
        if sweep not in self._outlooks:
            slots = [*self._free(state), *self._in_batches(state), *self._alone(state)]
            self._outlooks[sweep] = Outlook(slot for slot in slots if slot is not None)
        return self._outlooks[sweep]

    def _free(self, state: SweepState) -> list[Slot | None]:
        return [
            _slot(state, view.node.name)
            for view in self._able(state)
            for _ in range(placement.slots(view) - view.running)
        ]

    def _able(self, state: SweepState) -> Sequence[NodeView]:
        """The nodes that would take one more of its tasks now."""
        views = self._seen_by(list(self._views.values()), state.job.owner)
        return placement.eligible(views, state.job.submission)

    def _in_batches(self, state: SweepState) -> list[Slot | None]:
        found: list[Slot | None] = []
        for sink in self._batches.holding_slots:
            takes = state.seconds_on(sink.node)
            if not sink.rest and not ((view := self._views.get(sink.node)) and view.up):
                continue
            if self._state(sink) is state and takes is not None:
                running = slot_in_use(takes, sink.ran_seconds)
                behind = takes * (len(sink.rest) - 1)
                found.append((running and Slot(takes, running.free_in_seconds + behind)) if sink.rest else Slot(takes))
        return found

    def _alone(self, state: SweepState) -> list[Slot | None]:
        found: list[Slot | None] = []
        for task in state.alone():
            attempt = self._active_jobs.current(task).current
            takes = None if attempt is None else state.seconds_on(attempt.node)
            if attempt is not None and takes is not None:
                found.append(slot_in_use(takes, time.time() - attempt.began))
        return found

    # --- others have nothing to do

    def level(self) -> float:
        """Take back what waits behind long tasks, where it would end earlier elsewhere, or shall not begin any more.

        Seconds until another look that nothing else would cause.
        """
        pause = math.inf
        for sink in self._batches.all:  # also where the last task takes longer than was expected
            state = self._state(sink)
            if state is None or len(sink.rest) < 2:
                continue
            pause = LEVEL_SECONDS
            if runs := self._misplaced(state, sink):
                self._batches.revoke(sink, runs)
        return pause

    def _misplaced(self, state: SweepState, sink: BatchSink) -> list[str]:
        """What waits there and should not."""
        if state.stopped or self._is_no_short_one(sink):
            return sink.behind()
        if self._promised.get(sink) and (takes := self._takes(sink)):
            return sink.behind()[int(AHEAD_SECONDS / takes) :]
        elsewhere = None if state.waiting else self._elsewhere(state, sink)
        if elsewhere is None or self._left_seconds(sink) - elsewhere < GAIN_SECONDS:
            return []
        behind = sink.behind()
        return behind if self._is_late(sink) else behind[len(behind) // 2 :]

    def _is_no_short_one(self, sink: BatchSink) -> bool:
        """Nothing of the sweep has ended yet, and this has run for so long that nothing should wait behind it."""
        return self._takes(sink) is None and sink.has_begun and sink.ran_seconds > GAIN_SECONDS

    def _is_late(self, sink: BatchSink) -> bool:
        takes = self._takes(sink)
        return takes is not None and slot_in_use(takes, sink.ran_seconds) is None

    def _elsewhere(self, state: SweepState, sink: BatchSink) -> float | None:
        """Seconds until a task that begins now in a free slot ends there; None when there is no such slot."""
        if not state.may_begin:
            return None
        # What stands before it there is all that keeps it from its own node, unless the slot was given away.
        return next((ends for ends, node in self._ends(state) if sink.released or node != sink.node), None)

    def _ends(self, state: SweepState) -> Sequence[tuple[float, str]]:
        """When a task that begins now ends, and where, the soonest first. One look at all nodes for all batches."""
        sweep = state.job.id
        if sweep not in self._free_ends:
            takes = [(state.seconds_on(view.node.name), view.node.name) for view in self._able(state)]
            self._free_ends[sweep] = sorted((seconds, node) for seconds, node in takes if seconds is not None)
        return self._free_ends[sweep]


def _slot(state: SweepState, node: str) -> Slot | None:
    takes = state.seconds_on(node)
    return None if takes is None else Slot(takes)
