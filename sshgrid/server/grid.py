"""What a session needs of the master and of its process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sshgrid.model import JobId, Submission
from sshgrid.protocol.messages import Cancel, ExplainReply, StatusReply
from sshgrid.reports.job_queries import JobQueries
from sshgrid.reports.node_queries import NodeQueries
from sshgrid.server.connected_clients import ConnectedClients
from sshgrid.spool.local_files import LocalFiles
from sshgrid.spool.spool import Spool
from sshgrid.users.accounts import Accounts


class Grid(Protocol):
    """The master: its questions, its accounts and its spool, and the changes that may be asked of it."""

    @property
    def job_queries(self) -> JobQueries: ...

    @property
    def node_queries(self) -> NodeQueries: ...

    @property
    def accounts(self) -> Accounts: ...

    @property
    def spool(self) -> Spool: ...

    @property
    def local_files(self) -> LocalFiles: ...

    async def submit(self, submission: Submission, key: str, owner: str = "") -> JobId: ...

    async def explain(self, submission: Submission) -> ExplainReply: ...

    async def cancel(self, request: Cancel, by: str = "") -> int: ...

    async def send_input(self, job_id: JobId, piece: bytes) -> None: ...

    async def resize(self, job_id: JobId, columns: int, rows: int) -> None: ...

    async def hold(self, jobs: Sequence[JobId], release: bool) -> int: ...

    async def retry(self, jobs: Sequence[JobId], failed: bool) -> int: ...

    async def remove(self, jobs: Sequence[JobId]) -> int: ...

    def back_up(self, path: Path) -> None: ...


class MasterProcess(Protocol):
    """The process that the session is part of."""

    @property
    def master(self) -> Grid: ...

    @property
    def clients(self) -> ConnectedClients: ...

    @property
    def inventory_error(self) -> str:
        """What is wrong with the inventory file; "" when the master uses it as it is."""

    def status(self) -> StatusReply: ...

    def leave(self, drain: bool) -> None:
        """Stop serving; with `drain` after the running attempts have ended."""

    async def reload(self) -> None:
        """Read the inventory file now; an error is kept in `inventory_error`."""

    async def reload_if_changed(self) -> None: ...
