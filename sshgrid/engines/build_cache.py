"""One build for the whole grid: which node compiles, which nodes wait for it, and how a build reaches other nodes.

Runs with the same build key wait for the node that compiles it, while that node answers. Then they receive its build
folder, which is fetched once and kept as a blob. A compile error ends all runs that wait for it. A build is passed on
only for equal keys, as plain files and folders, and with --verify-build only after a smoke test.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tarfile
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import PurePosixPath
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, TypeAlias

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.engines import Sink
from sshgrid.engines.hosts import BuildNode
from sshgrid.engines.launch import BUILD_LIMIT_SECONDS
from sshgrid.errors import NodeUnfit, SshgridError
from sshgrid.lru import LruCache
from sshgrid.model import CompileFailed, Recipe, Step, Struct
from sshgrid.spool.spool import Spool
from sshgrid.ssh.channels import READ_BYTES
from sshgrid.ssh.link import Link

log = logging.getLogger(__name__)

MAX_BUILD_BYTES = 256 << 20  # larger builds stay on the node that made them
MAX_KEPT_BYTES = 2 << 30
MAX_KEYS = 4096  # build keys, and scopes, that are remembered
POLL_SECONDS = 0.5
SILENT_SECONDS = 3.0  # runs stop waiting for a compiling node that is silent for longer
WAIT_SECONDS = BUILD_LIMIT_SECONDS + 60.0

# (language, maker, taker) -> "" or the reason why the taker must not use the maker's build.
Verify: TypeAlias = Callable[[str, BuildNode, BuildNode], Awaitable[str]]


async def _unverified(language: str, maker: BuildNode, taker: BuildNode) -> str:
    return f"no {language} smoke test of {maker.name} has run on {taker.name}"


class BuildFailure(Struct, frozen=True):
    """A failed compilation. `text` is what the compiler printed, with the node's file names."""

    outcome: CompileFailed
    text: bytes


class Claim:
    """The right to build on `node`. When it ends without a result, the next run that waits builds."""

    def __init__(self, node: BuildNode, on_exit: Callable[[Claim], None], clock: Clock) -> None:
        self.node = node
        self.ended: asyncio.Future[BuildFailure | None] = asyncio.get_running_loop().create_future()
        self.succeeded = False
        self._on_exit = on_exit
        self._clock = clock
        self._began = clock.monotonic()

    def built(self) -> None:
        """Note that the node has the build."""
        self.succeeded = True

    def failed(self, failure: BuildFailure) -> None:
        """Give all runs that wait this result: the program does not compile."""
        if not self.ended.done():
            self.ended.set_result(failure)

    def release(self) -> None:
        """Let the runs that wait look again."""
        if not self.ended.done():
            self.ended.set_result(None)

    @property
    def too_long(self) -> bool:
        return self._clock.monotonic() - self._began > WAIT_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._on_exit(self)
        self.release()


class Archive(Struct, frozen=True):
    """A build folder as a blob."""

    sha256: str
    size: int


class Holder(NamedTuple):
    """A node that has a build, and the node that made it: itself, or the one it was fetched from."""

    node: BuildNode
    maker: BuildNode


class CachedBuild(NamedTuple):
    """A build in the spool, and the node that made it."""

    archive: Archive
    maker: BuildNode


class BuildCache:
    """The builds that are being made, and the nodes and blobs that have builds."""

    def __init__(
        self,
        spool: Spool,
        max_build_bytes: int = MAX_BUILD_BYTES,
        max_kept_bytes: int = MAX_KEPT_BYTES,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._spool = spool
        self._max_build_bytes = max_build_bytes
        self._clock = clock
        self._claims: dict[str, Claim] = {}  # by scope
        self._holders = LruCache[str, dict[str, Holder]](MAX_KEYS)  # by build key, then by node
        self._archives = LruCache[str, CachedBuild](max_kept_bytes, lambda build: build.archive.size, self._remove_blob)
        self._unshared = LruCache[str, str](MAX_KEYS)  # scopes that receive no builds of other nodes -> the reason
        self._locks: dict[str, asyncio.Lock] = {}
        self.verify: Verify = _unverified  # called when the recipe asks for it

    async def obtain(self, recipe: Recipe, node: BuildNode, sink: Sink) -> Claim | BuildFailure | None:
        """Return None when the node has the build, a BuildFailure when the program does not compile.

        Return a Claim when this node is to build: the caller enters it as a context manager and builds. Raises
        HostError when the node itself is lost.
        """
        while True:
            scope = self._scope(recipe, node)
            claim = self._claims.get(scope)
            if claim is not None:
                failure = await self._wait(scope, claim, node, recipe, sink)
                if failure is not None:
                    return failure
            elif await self._has_build(recipe, node, sink):
                return None
            elif scope not in self._claims and scope == self._scope(recipe, node):
                claim = self._claims[scope] = Claim(
                    node, partial(self._on_claim_exit, scope, recipe.build_key), self._clock
                )
                return claim

    def why_not_taken(self, build_key: str, node: str) -> str:
        """Return why this node compiled what other nodes had already; "" when there was no reason against theirs."""
        return self._unshared.peek(f"{build_key} {node}") or self._unshared.peek(build_key) or ""

    def _scope(self, recipe: Recipe, node: BuildNode) -> str:
        """Return the scope in which runs wait for one another: the build key alone, or the node's own."""
        key, own = recipe.build_key, f"{recipe.build_key} {node.name}"
        return key if recipe.shared and key not in self._unshared and own not in self._unshared else own

    # --- wait for a build

    async def _wait(self, scope: str, claim: Claim, node: BuildNode, recipe: Recipe, sink: Sink) -> BuildFailure | None:
        if recipe.compile:
            await sink.step(Step.COMPILING)
        while not claim.ended.done():
            await asyncio.wait([claim.ended], timeout=POLL_SECONDS)
            if not claim.ended.done() and self._is_lost(claim, node):
                log.info("%s is no longer waited for: %s builds %s", claim.node.name, node.name, scope[:12])
                self._drop(scope, claim)
                claim.release()
        return claim.ended.result()

    def _is_lost(self, claim: Claim, node: BuildNode) -> bool:
        """Return whether to stop waiting for a claim.

        While this node is silent too, the network may be at fault; on the same node there is no better builder.
        """
        silent = claim.node.silent_seconds() > SILENT_SECONDS and node.silent_seconds() <= SILENT_SECONDS
        return claim.node.name != node.name and (silent or claim.too_long)

    def _drop(self, scope: str, claim: Claim) -> None:
        if self._claims.get(scope) is claim:
            del self._claims[scope]

    def _on_claim_exit(self, scope: str, key: str, claim: Claim) -> None:
        self._drop(scope, claim)
        if claim.succeeded:
            self._add_holder(key, Holder(claim.node, claim.node))

    def _add_holder(self, key: str, holder: Holder) -> None:
        self._holders[key] = (self._holders.peek(key) or {}) | {holder.node.name: holder}

    def _holders_of(self, key: str) -> dict[str, Holder]:
        return self._holders.peek(key) or {}

    # --- pass a build on

    async def _has_build(self, recipe: Recipe, node: BuildNode, sink: Sink) -> bool:
        """Return whether the node has the build, after passing one on to it if possible.

        One call at a time for each node, as two would send the same build twice.
        """
        key = recipe.build_key
        if node.name in self._holders_of(key):
            return True
        if self._scope(recipe, node) != key or not (key in self._archives or self._holders_of(key)):
            return False
        async with self._lock(f"{key} {node.name}"):
            if node.name not in self._holders_of(key):
                maker = await self._pass_on(recipe, node, sink)
                if maker is None:
                    return False
                self._add_holder(key, Holder(node, maker))
        return True

    def _lock(self, name: str) -> asyncio.Lock:
        """Return the lock of this name. Locks that are not held are dropped from time to time."""
        if len(self._locks) > MAX_KEYS:
            self._locks = {name: lock for name, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(name, asyncio.Lock())

    async def _pass_on(self, recipe: Recipe, node: BuildNode, sink: Sink) -> BuildNode | None:
        """Return the maker of the build that the node has now; None when it has none."""
        key, link = recipe.build_key, await node.connected(0)
        if await link.builds.has(key):
            return node
        cached = await self._cached(key)
        if cached is None:
            return None
        await sink.step(Step.UPLOADING)
        problem = await self.verify(recipe.verify, cached.maker, node) if recipe.verify else ""
        if not problem:
            problem = await self._send(key, cached.archive, link, sink)
        if problem:
            log.info("%s builds %s itself: %s", node.name, key[:12], problem)
            self._unshared[f"{key} {node.name}"] = problem
        return None if problem else cached.maker

    async def _send(self, key: str, archive: Archive, link: Link, sink: Sink) -> str:
        """Return an error reason, or "" on success."""
        try:
            await sink.uploaded(await link.transfer.upload(archive.sha256, self._spool.blobs.path(archive.sha256)))
            return await link.builds.unpack(key, archive.sha256)
        except (NodeUnfit, FileNotFoundError) as error:
            return str(error)

    async def _cached(self, key: str) -> CachedBuild | None:
        """Return the build as a blob, fetched once from a node that has it; None when no node gives it."""
        async with self._lock(key):
            cached = self._archives.get(key)
            if cached is not None and self._spool.blobs.has(cached.archive.sha256):
                return cached
            self._archives.pop(key)
            while key not in self._unshared and (holders := self._holders_of(key)):
                source, maker = next(reversed(holders.values()))
                try:
                    cached = CachedBuild(await self._fetch(key, source), maker)
                except (SshgridError, OSError) as error:
                    log.info("cannot fetch the build %s from %s: %s", key[:12], source.name, error)
                    holders.pop(source.name, None)
                else:
                    self._archives[key] = cached
                    return cached
            return None

    async def _fetch(self, key: str, source: BuildNode) -> Archive:
        link = await source.connected(0)
        incoming = self._spool.blobs.incoming
        with tempfile.TemporaryFile(dir=incoming) as raw, tempfile.TemporaryFile(dir=incoming) as clean:
            match await link.builds.pack(key, self._max_build_bytes, raw):
                case "":
                    pass
                case "large":
                    self._unshared[key] = f"it has more than {self._max_build_bytes} bytes"
                    raise NodeUnfit(source.name, f"more than {self._max_build_bytes} bytes")
                case word:
                    raise NodeUnfit(source.name, f"its build is {word!r}")
            try:
                return await asyncio.to_thread(self._store, raw, clean)
            except (tarfile.TarError, ValueError, EOFError) as error:
                self._unshared[key] = str(error)
                raise NodeUnfit(source.name, f"its build is not passed on: {error}") from error

    def _store(self, raw: BinaryIO, clean: BinaryIO) -> Archive:
        """Rewrite an archive and add it to the spool. Runs in a thread, as it may take a second."""
        rewrite(raw, clean, self._max_build_bytes, self._clock.wall())
        size = clean.tell()
        clean.seek(0)
        hashed = hashlib.sha256()
        while piece := clean.read(READ_BYTES):
            hashed.update(piece)
        sha256 = hashed.hexdigest()
        clean.seek(0)
        with self._spool.blobs.writer(sha256, size) as writer:
            while piece := clean.read(READ_BYTES):
                writer.append(piece)
            writer.finish()
        return Archive(sha256, size)

    def _remove_blob(self, _key: str, evicted: CachedBuild) -> None:
        """Remove the blob of an evicted build, unless another build has the same bytes."""
        if all(evicted.archive != build.archive for build in self._archives.values()):
            self._spool.blobs.path(evicted.archive.sha256).unlink(missing_ok=True)


def rewrite(raw: BinaryIO, clean: BinaryIO, most_bytes: int, now: float) -> None:
    """Write a node's archive anew, with plain files and folders without an owner, changed at `now`.

    Nodes do not trust each other: what the headers of one node's archive say must not take effect on another. Raises
    ValueError, TarError or EOFError.
    """
    raw.seek(0)
    total = 0
    with (
        tarfile.open(fileobj=raw, mode="r:") as source,
        tarfile.open(fileobj=clean, mode="w", format=tarfile.GNU_FORMAT) as target,
    ):
        for member in source:
            path = PurePosixPath(member.name)
            if path == PurePosixPath("."):
                continue
            if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                raise ValueError(f"{member.name[:80]!r} in it is not a plain file or folder")
            total += member.size
            if total > most_bytes:
                raise ValueError(f"it has more than {most_bytes} bytes")
            plain = tarfile.TarInfo(str(path))
            plain.type = tarfile.DIRTYPE if member.isdir() else tarfile.REGTYPE
            plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            plain.mtime = int(now)
            plain.size = 0 if member.isdir() else member.size
            target.addfile(plain, source.extractfile(member) if member.isreg() else None)
