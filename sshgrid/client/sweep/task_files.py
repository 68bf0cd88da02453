"""What the tasks of a sweep bring back: a folder for each, filled before the task is recorded.

Over a connection of its own, as the other one goes on telling of tasks. Refuses to record a task whose files are not
there: `--resume` brings them again.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import os

from sshgrid.client.fetch import unpack
from sshgrid.client.follow import JobReader
from sshgrid.client.session import Session
from sshgrid.client.sweep.plan import Plan
from sshgrid.model import JobId, task_id
from sshgrid.protocol.messages import Info, JobsReply
from sshgrid.protocol.sweep_messages import TaskLine


class TaskFiles:
    """Files of one sweep, below `folder`; `below`: of the task's own folder, the part that is for them."""

    def __init__(self, session: Session, sweep: JobId, planned: Plan, folder: str, below: str) -> None:
        self._session, self._sweep, self._planned = session, sweep, planned
        self._folder, self._below = folder, below

    def bring(self, task: TaskLine) -> None:
        """All files of this task. NotFetched when some are not there."""
        job = task_id(self._sweep, task.number)
        with JobReader(self._session.connect(), self._session.connect) as following:
            (line,) = following.connection.request(Info(job), JobsReply).jobs
            found = line.fetched
            for warning in found.warnings if found else ():
                self._session.warn(f"task {self._sweep}.{task.number}: {warning}")
            if found is not None and found.files:
                unpack(line, following.kept(job, line.attempt, "files"), self._place(task.number), _SilentConnection())

    def _place(self, number: int) -> str:
        return os.path.join(self._folder, self._planned.folder(number), self._below)


class _SilentConnection:
    """A thousand tasks with ten files each are not told file by file."""

    def fetched(self, name: str, size: int, replaced: bool) -> None:
        """Not told."""
