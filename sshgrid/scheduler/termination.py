"""Ends attempts early: signals of growing force to a run that has started, a refusal for one that has not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sshgrid.engines.launch import place_in
from sshgrid.errors import HostError
from sshgrid.model import Job, Superseded
from sshgrid.node.managed_node import ManagedNode
from sshgrid.nodes import NodePool
from sshgrid.scheduler.attempt_registry import AttemptRegistry, RunningAttempt
from sshgrid.scheduler.attempt_tasks import AttemptTasks

log = logging.getLogger(__name__)

# (signal, seconds until the next one), by the signal of the request; KILL is repeated after the last one.
ESCALATION: dict[str, tuple[tuple[str, float], ...]] = {
    "INT": (("INT", 5.0), ("TERM", 5.0), ("KILL", 5.0)),
    "TERM": (("TERM", 5.0), ("KILL", 5.0)),
    "KILL": (("KILL", 5.0),),
}
RESEND_SECONDS = 0.2
KILL_AGAIN_SECONDS = 1.0

RevokeTask = Callable[[RunningAttempt, ManagedNode], Awaitable[bool]]


class Termination:
    """Ends attempts. `revoke_task` keeps a task of a batch from starting; False when it has started."""

    def __init__(self, pool: NodePool, running: AttemptRegistry, tasks: AttemptTasks, revoke_task: RevokeTask) -> None:
        self._pool = pool
        self._running = running
        self._tasks = tasks
        self._revoke_task = revoke_task

    async def send_signal(self, job: Job, name: str) -> None:
        """Send one signal to each live attempt; the program decides what it means. Raises HostError."""
        for running in self._running.of(job):
            if node := self._pool.nodes.get(running.attempt.node):
                await node.engine.runs.signal(place_in(running.record.batch, running.run), name)

    def end(self, job: Job, signal: str) -> None:
        """End each live attempt of a job with signals of growing force, `signal` first."""
        for running in self._running.of(job):
            self._end(running, signal)

    def end_superseded(self, job: Job) -> None:
        """Kill the attempts of a job that another attempt has superseded; their results are ignored."""
        for running in self._running.superseded_of(job):
            running.superseded = True
            if running.termination is None:  # one that is already ending keeps its own signals
                self._end(running, "KILL")

    def end_if_requested(self, job: Job, running: RunningAttempt) -> None:
        """End a resumed attempt that was superseded, or whose job was cancelled, under an earlier master."""
        if isinstance(running.record.outcome, Superseded):
            self.end_superseded(job)
        elif job.cancel_requested:
            self._end(running, _cancel_signal(job))

    def _end(self, running: RunningAttempt, signal: str) -> None:
        if running.termination is not None:
            running.termination.cancel()
        running.termination = self._tasks.start(self._escalate(running, signal), f"end {running.attempt}")

    async def _escalate(self, running: RunningAttempt, signal: str) -> None:
        """Send signals until the end of the attempt cancels this."""
        node = self._pool.nodes.get(running.attempt.node)
        if node is None:
            return
        for name, pause in ESCALATION[signal]:
            await self._deliver(running, node, name)
            await asyncio.sleep(pause)
        while True:
            await self._deliver(running, node, "KILL")
            await asyncio.sleep(KILL_AGAIN_SECONDS)

    async def _deliver(self, running: RunningAttempt, node: ManagedNode, name: str) -> None:
        """Send a signal, or refuse a run that has not started; retry while the node does not answer."""
        while True:
            try:
                if await node.engine.runs.signal(place_in(running.record.batch, running.run), name):
                    return
                if await self._refuse(running, node):
                    return
            except HostError as error:
                log.info("%s: cannot send %s to %s yet: %s", node.name, name, running.run, error.reason)
            await asyncio.sleep(RESEND_SECONDS)

    async def _refuse(self, running: RunningAttempt, node: ManagedNode) -> bool:
        """Keep a run from starting; False when it has started."""
        if running.record.batch:
            return await self._revoke_task(running, node)
        if not await node.engine.runs.refuse(running.run):
            return False
        running.refused = True
        assert running.follower is not None
        running.follower.cancel()
        return True


def _cancel_signal(job: Job) -> str:
    """The signal of the cancel request: the first word of `cancel_by`."""
    name = job.cancel_by.split(maxsplit=1)[0] if job.cancel_by else "TERM"
    return name if name in ESCALATION else "TERM"
