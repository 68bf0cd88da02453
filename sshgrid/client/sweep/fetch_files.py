"""Fetch the files of a sweep's tasks, into a folder for each task, before the task is recorded.

Uses a connection of its own, as the other one carries the events of the sweep. A task whose files are not complete is
not recorded, so that `--resume` fetches them again.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os

from sshgrid.client.fetch import unpack
from sshgrid.client.follow import ReconnectingReader
from sshgrid.client.session import Session
from sshgrid.client.sweep.plan import Plan
from sshgrid.model import JobId, task_id
from sshgrid.protocol.messages import Info, JobsReply
from sshgrid.protocol.sweep_messages import TaskLine


class TaskFileFetcher:
    """Fetches into `folder`/TASK/`subfolder`."""

    def __init__(self, session: Session, sweep: JobId, plan: Plan, folder: str, subfolder: str) -> None:
        self._session, self._sweep, self._plan = session, sweep, plan
        self._folder, self._subfolder = folder, subfolder

    def fetch(self, task: TaskLine) -> None:
        """Fetch all files of this task. NotFetched when some are missing."""
        job = task_id(self._sweep, task.number)
        with ReconnectingReader(self._session.connect(), self._session.connect) as reader:
            (line,) = reader.connection.request(Info(job), JobsReply).jobs
            fetched = line.fetched
            for warning in fetched.warnings if fetched else ():
                self._session.warn(f"task {self._sweep}.{task.number}: {warning}")
            if fetched is not None and fetched.files:
                unpack(line, reader.kept(job, line.attempt, "files"), self._path(task.number), _NoListener())

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, self._plan.folder(number), self._subfolder)


class _NoListener:
    """Prints nothing: a sweep may fetch thousands of files."""

    def fetched(self, name: str, size: int, replaced: bool) -> None:
        """Print nothing."""
