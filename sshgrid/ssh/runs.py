"""The runs and batches of a node over one connection: start, follow, signal and remove them.

The verbs are shell functions of `remote/node.sh` and `remote/batch.sh`. Programs are not judged here: the methods
return what the node reports. All raise HostError, after which the connection is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence

from sshgrid.errors import NodeUnfit
from sshgrid.ssh.channels import Conversation, check_words, early_end
from sshgrid.ssh.connect import blame_in_use
from sshgrid.ssh.control import Control
from sshgrid.ssh.parsers import BatchLook, RunLook, Started, parse_batch, parse_poll, parse_sizes
from sshgrid.ssh.starter import StarterShell

CLEAN_SECONDS = 600  # a run may have made a million files
PIECE_BYTES = 1024 * 1024
LOOK_RECORDS = 512  # of a batch in one look
SMALL_BLOCKS = 8  # of 512 bytes: outputs of tasks up to this size come with the look


class RunVerbs:
    """The verbs for runs."""

    def __init__(self, control: Control, starter: StarterShell) -> None:
        self._control = control
        self._starter = starter

    # --- start

    async def start(
        self,
        run: str,
        not_after_uptime: float,
        job: bytes,
        build: str,
        needed: Sequence[str],
        objects: Sequence[str],
        verb: str = "start",
    ) -> Started:
        """Start a run, at most once. After Dropped it may have started: its run folder shows it.

        `needed` and `objects` are digests of objects; `objects` are needed only without the build.
        The verb "prepare" leaves the start of the program to `converse`.
        """
        words = (verb, run, str(int(not_after_uptime)), build, " ".join(needed) or "-", *objects)
        return await self._starter.send(run, words, job)

    async def extend(
        self, batch: str, part: int, not_after_uptime: float, job: bytes, tasks: int, needed: Sequence[str]
    ) -> Started:
        """Add tasks to a running batch, as its job.PART.sh, at most once. The answer "already": it takes no more."""
        words = ("add_tasks", batch, str(int(not_after_uptime)), " ".join(needed) or "-", str(part), str(tasks))
        return await self._starter.send(f"{batch}.{part}", words, job)

    @contextlib.asynccontextmanager
    async def converse(self, run: str, *, terminal: bool) -> AsyncIterator[Conversation]:
        """Run a prepared interactive run on a channel of its own, on a pseudo-terminal if asked. Raises HostError."""
        control, nonce = self._control, secrets.token_hex(8)
        workdir, boot = control.facts.workdir, control.facts.boot_id
        words = ("exec", "/bin/sh", control.library, "converse", workdir, run, boot, nonce)
        check_words(control.node.name, workdir, *words)
        with blame_in_use(control.node):
            term_type = "xterm-256color" if terminal else None
            with early_end():
                process = await control.connection.create_process(
                    " ".join(words), encoding=None, term_type=term_type, term_size=(80, 24)
                )
            try:
                yield await Conversation.begin(process, nonce.encode(), terminal=terminal)
            finally:
                process.close()
        control.check_alive()

    async def claim(self, run: str) -> bool:
        """Create the folder of a run so that it can never start. Return False when it exists.

        Raises NodeUnfit when the disk is full.
        """
        answer = (await self._control.request("claim", run)).strip()
        if answer == b"unfit":
            workdir = self._control.facts.workdir
            raise NodeUnfit(self._control.node.name, f"cannot make a run folder in {workdir} (disk full or read-only)")
        return answer == b"claimed"

    async def block_start(self, run: str) -> None:
        """Prevent the wrapper of a claimed run, which has not started, from starting late."""
        await self._control.request("block_start", run)

    async def refuse_tasks(self, batch: str, tasks: Sequence[str]) -> list[str]:
        """Prevent tasks of a batch from starting. Return those that had not started."""
        return (await self._control.request("refuse_tasks", batch, *tasks)).decode("ascii", "replace").split()

    # --- follow

    def wakeup(self, run: str) -> asyncio.Event:
        """Return the event that is set when the node reports on this run, and when the connection is lost."""
        return self._starter.wakeup(run)

    async def poll(self, runs: Sequence[str]) -> dict[str, RunLook]:
        """Return the state of each of these runs."""
        return parse_poll(await self._control.request("poll", *runs), runs)

    async def poll_with_output(self, run: str, offset: int, count: int) -> tuple[RunLook, bytes]:
        """Return the state of one run, and its standard output from `offset`, in one round trip."""
        answer = b"\n" + await self._control.request("poll_with_output", run, str(offset), str(count))
        listed, _, piece = answer.partition(b"\nout\n")
        return parse_poll(listed, [run])[run], piece

    async def batch_status(self, batch: str, seen: int) -> BatchLook:
        """Return the records of a batch's ledger after the first `seen`, with small outputs of tasks that ended."""
        words = (batch, str(seen), str(LOOK_RECORDS), str(SMALL_BLOCKS))
        return parse_batch(await self._control.request("batch_status", *words), batch)

    async def file_sizes(self, batch: str, files: Sequence[str]) -> dict[str, int]:
        """Return the sizes in bytes of those of these files of a batch that exist."""
        return parse_sizes(await self._control.request("file_sizes", batch, *files))

    async def read_piece(self, run: str, file: str, offset: int, count: int) -> bytes:
        """Return at most `count` bytes of a file of a run, from `offset`."""
        return await self._control.request("read_piece", f"{run}/{file}", str(offset), str(count))

    # --- end

    async def signal(self, run: str, name: str) -> bool:
        """Send a signal to a run. Return False when it is not running."""
        return (await self._control.request("signal", run, name)).strip() == b"sent"

    async def renew_lease(self, run: str, until_uptime: float) -> None:
        """Move the end of the run's lease to this uptime of the node."""
        await self._control.request("renew_lease", run, str(int(until_uptime)))

    async def clean(self, runs: Sequence[str]) -> None:
        """Kill the processes of these runs and remove their files. Raises NodeUnfit when some are left."""
        left = await self._control.request("clean", *runs, seconds=CLEAN_SECONDS)
        for run in runs:
            self._starter.forget(run)
        if left.strip():
            raise NodeUnfit(self._control.node.name, f"cannot remove {left.decode(errors='replace').strip()}")

    async def names_of_grid(self, grid: str) -> list[str]:
        """Return the names of the run folders of this grid."""
        return (await self._control.request("runs_of", grid)).decode("utf-8", "replace").split()
