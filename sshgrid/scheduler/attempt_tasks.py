"""Where a bug in one attempt stops: the asyncio tasks that run attempts, and what an exception in one of them means.

The only `except Exception` of the project is here: it turns a bug of sshgrid into a verdict of one job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from sshgrid.engines import AttemptResult
from sshgrid.errors import HostError, SshgridError, StoreError
from sshgrid.model import Crashed, HostLost, ToolchainBroken
from sshgrid.node.managed_node import ManagedNode

log = logging.getLogger(__name__)
T = TypeVar("T")


class AttemptTasks:
    """The asyncio tasks of all attempts. `fail` stops the master after an error of the store."""

    def __init__(self, fail: Callable[[StoreError], None]) -> None:
        self._fail = fail
        self._tasks: set[asyncio.Task[None]] = set()  # not a TaskGroup: an error of one attempt ends no other

    def start(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Run `work` until it ends or `cancel_all` cancels it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StoreError):  # nothing was settled: the master must not continue without its disk
            self._fail(error)
        elif error is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def cancel_all(self) -> None:
        """Cancel every task and wait for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def result_or_blame(what: str, node: ManagedNode, work: Awaitable[T]) -> T | AttemptResult:
    """The result of `work`; when it raises, a result that blames the host, the toolchain, or sshgrid itself.

    Raises StoreError. `what` names the work in the log.
    """
    try:
        return await work
    except HostError as error:
        log.info("%s on %s: %s", what, node.name, error.reason)
        return AttemptResult(HostLost(error.reason))
    except StoreError:
        raise
    except SshgridError as error:
        return AttemptResult(ToolchainBroken(error.message))
    except Exception as error:
        log.exception("%s on %s", what, node.name)
        return AttemptResult(Crashed(f"{type(error).__name__}: {error}"))
