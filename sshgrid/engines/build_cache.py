"""One build for the whole grid: who compiles, who waits for it, and how what was built comes to other nodes.

Runs that need the same build key wait for whoever is compiling it already, as long as that node is heard of; then they
get the build folder, brought once and kept as a blob that may be swept at any time. A compile error ends all who waited
for it. Refuses to trust anything but equal keys (and, where that is asked for, a hello of the node that built), and to
pass on more than plain files and folders.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tarfile
import tempfile
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import PurePosixPath
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, TypeAlias

from sshgrid.engines import Sink
from sshgrid.engines.hosts import BuildNode
from sshgrid.engines.launch import BUILD_LIMIT_SECONDS
from sshgrid.errors import NodeUnfit, SshgridError
from sshgrid.model import CompileFailed, Recipe, Step, Struct
from sshgrid.spool.spool import Spool
from sshgrid.ssh.channels import READ_BYTES
from sshgrid.ssh.link import Link

log = logging.getLogger(__name__)

MAX_BUILD_BYTES = 256 << 20  # larger ones stay where they were made
MAX_KEPT_BYTES = 2 << 30
MAX_KNOWN = 4096  # keys of which we remember who has them
LOOK_SECONDS = 0.5
SILENT_SECONDS = 3.0  # a compiling node that says nothing for so long is no longer waited for
WAIT_SECONDS = BUILD_LIMIT_SECONDS + 60.0


# (language, who built, who is to take it) -> "" or why a build must not be taken.
Verify: TypeAlias = Callable[[str, BuildNode, BuildNode], Awaitable[str]]


async def _unverified(language: str, maker: BuildNode, taker: BuildNode) -> str:
    return f"no hello in {language} of {maker.name} was tried on {taker.name}"


class BuildFailure(Struct, frozen=True):
    """What the compiler said, about files as they are named on the node."""

    outcome: CompileFailed
    words: bytes


class Claim:
    """The right and duty to build. Left without a word, the next one who waits gets it."""

    def __init__(self, place: BuildNode, end: Callable[[Claim], None]) -> None:
        self.place = place
        self.began = time.monotonic()
        self.ended: asyncio.Future[BuildFailure | None] = asyncio.get_running_loop().create_future()
        self.succeeded = False
        self._end = end

    def built(self) -> None:
        """It is on the node."""
        self.succeeded = True

    def failed(self, failure: BuildFailure) -> None:
        """The program is at fault: all who wait have their result."""
        if not self.ended.done():
            self.ended.set_result(failure)

    def release(self) -> None:
        """Whoever waits shall look again."""
        if not self.ended.done():
            self.ended.set_result(None)

    @property
    def too_long(self) -> bool:
        return time.monotonic() - self.began > WAIT_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(self)
        self.release()


class Archive(Struct, frozen=True):
    """A build folder as a blob."""

    sha256: str
    size: int


class Holder(NamedTuple):
    """A node that has a build, and the one that made it: itself, or where it was brought from."""

    place: BuildNode
    maker: BuildNode


class CachedBuild(NamedTuple):
    """A build in the spool, and who made it."""

    archive: Archive
    maker: BuildNode


class BuildCache:
    """What is being built, and where builds are."""

    def __init__(
        self, spool: Spool, max_build_bytes: int = MAX_BUILD_BYTES, max_kept_bytes: int = MAX_KEPT_BYTES
    ) -> None:
        self._spool = spool
        self._max_build_bytes = max_build_bytes
        self._max_kept_bytes = max_kept_bytes
        self._under_way: dict[str, Claim] = {}
        self._holders: OrderedDict[str, dict[str, Holder]] = OrderedDict()  # key -> nodes that have it, by name
        self._archives: OrderedDict[str, CachedBuild] = OrderedDict()
        self._unshared: OrderedDict[str, str] = OrderedDict()  # scopes that builds of others do not come to, and why
        self._locks: dict[str, asyncio.Lock] = {}
        self.verify: Verify = _unverified  # asked where a recipe wants it

    async def obtain(self, recipe: Recipe, place: BuildNode, sink: Sink) -> Claim | BuildFailure | None:
        """None: the node has the build. A Claim: build it there, inside `with`. A Failure: it does not compile.

        Raises HostError when the node itself is lost.
        """
        while True:
            scope = self._scope(recipe, place)
            claim = self._under_way.get(scope)
            if claim is not None:
                failure = await self._wait(scope, claim, place, recipe, sink)
                if failure is not None:
                    return failure
            elif await self._is_there(recipe, place, sink):
                return None
            elif scope not in self._under_way and scope == self._scope(recipe, place):
                claim = self._under_way[scope] = Claim(place, partial(self._ended, scope, recipe.build_key))
                return claim

    def why_not_taken(self, build_key: str, node: str) -> str:
        """Why this node has compiled what others had already; "" when nothing spoke against theirs."""
        return self._unshared.get(f"{build_key} {node}") or self._unshared.get(build_key, "")

    def _scope(self, recipe: Recipe, place: BuildNode) -> str:
        """Who is of the same scope waits for one another: the grid, or the node alone."""
        key, own = recipe.build_key, f"{recipe.build_key} {place.name}"
        return key if recipe.shared and self._unshared.keys().isdisjoint((key, own)) else own

    # --- waiting

    async def _wait(
        self, scope: str, claim: Claim, place: BuildNode, recipe: Recipe, sink: Sink
    ) -> BuildFailure | None:
        if recipe.compile:
            await sink.step(Step.COMPILING)
        while not claim.ended.done():
            await asyncio.wait([claim.ended], timeout=LOOK_SECONDS)
            if not claim.ended.done() and self._is_lost(claim, place):
                log.info("%s is no longer waited for: %s builds %s", claim.place.name, place.name, scope[:12])
                self._drop(scope, claim)
                claim.release()
        return claim.ended.result()

    def _is_lost(self, claim: Claim, place: BuildNode) -> bool:
        """When we are silent too, the fault may be the network's; on the same node there is nobody better."""
        silent = claim.place.silent_seconds() > SILENT_SECONDS and place.silent_seconds() <= SILENT_SECONDS
        return claim.place.name != place.name and (silent or claim.too_long)

    def _drop(self, scope: str, claim: Claim) -> None:
        if self._under_way.get(scope) is claim:
            del self._under_way[scope]

    def _ended(self, scope: str, key: str, claim: Claim) -> None:
        self._drop(scope, claim)
        if claim.succeeded:
            self._note(key, Holder(claim.place, claim.place))

    def _note(self, key: str, holder: Holder) -> None:
        self._holders.setdefault(key, {})[holder.place.name] = holder
        self._holders.move_to_end(key)
        while len(self._holders) > MAX_KNOWN:
            self._holders.popitem(last=False)

    # --- bringing

    async def _is_there(self, recipe: Recipe, place: BuildNode, sink: Sink) -> bool:
        """After this, if it can be brought. One at a time for each node: two would send the same."""
        key = recipe.build_key
        if place.name in self._holders.get(key, {}):
            return True
        if self._scope(recipe, place) != key or not (self._archives.get(key) or self._holders.get(key)):
            return False
        async with self._lock(f"{key} {place.name}"):
            if place.name not in self._holders.get(key, {}):
                maker = await self._bring(recipe, place, sink)
                if maker is None:
                    return False
                self._note(key, Holder(place, maker))
        return True

    def _lock(self, name: str) -> asyncio.Lock:
        """Locks that nobody holds are forgotten now and then."""
        if len(self._locks) > MAX_KNOWN:
            self._locks = {name: lock for name, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(name, asyncio.Lock())

    async def _bring(self, recipe: Recipe, place: BuildNode, sink: Sink) -> BuildNode | None:
        """Who made it, when the node has it now."""
        key, link = recipe.build_key, await place.connected(0)
        if await link.built(key):
            return place
        kept = await self._kept(key)
        if kept is None:
            return None
        await sink.step(Step.UPLOADING)
        problem = await self.verify(recipe.verify, kept.maker, place) if recipe.verify else ""
        if not problem:
            problem = await self._send(key, kept.archive, link, sink)
        if problem:
            log.info("%s builds %s itself: %s", place.name, key[:12], problem)
            self._give_up(f"{key} {place.name}", problem)
        return None if problem else kept.maker

    async def _send(self, key: str, archive: Archive, link: Link, sink: Sink) -> str:
        """ "" or why the node does not take it."""
        try:
            await sink.uploaded(await link.cargo.upload(archive.sha256, self._spool.blobs.path(archive.sha256)))
            return await link.unpack(key, archive.sha256)
        except (NodeUnfit, FileNotFoundError) as error:
            return str(error)

    async def _kept(self, key: str) -> CachedBuild | None:
        """The build as a blob: kept, or brought once from a node that has it. None when there is no way."""
        async with self._lock(key):
            kept = self._archives.get(key)
            if kept is not None and self._spool.blobs.has(kept.archive.sha256):
                self._archives.move_to_end(key)
                return kept
            self._archives.pop(key, None)
            while key not in self._unshared and (holders := self._holders.get(key)):
                source, maker = next(reversed(holders.values()))
                try:
                    return self._keep(key, CachedBuild(await self._fetch(key, source), maker))
                except (SshgridError, OSError) as error:
                    log.info("the build %s of %s cannot be had: %s", key[:12], source.name, error)
                    holders.pop(source.name, None)
            return None

    async def _fetch(self, key: str, source: BuildNode) -> Archive:
        link = await source.connected(0)
        with (
            tempfile.TemporaryFile(dir=self._spool.blobs.incoming) as raw,
            tempfile.TemporaryFile(dir=self._spool.blobs.incoming) as clean,
        ):
            match await link.pack(key, self._max_build_bytes, raw):
                case "":
                    pass
                case "large":
                    self._give_up(key, f"it has more than {self._max_build_bytes} bytes")
                    raise NodeUnfit(source.name, f"more than {self._max_build_bytes} bytes")
                case word:
                    raise NodeUnfit(source.name, f"its build is {word!r}")
            try:
                return await asyncio.to_thread(self._clean, raw, clean)
            except (tarfile.TarError, ValueError, EOFError) as error:
                self._give_up(key, str(error))
                raise NodeUnfit(source.name, f"its build is not passed on: {error}") from error

    def _give_up(self, scope: str, why: str) -> None:
        self._unshared[scope] = why
        while len(self._unshared) > MAX_KNOWN:
            self._unshared.popitem(last=False)

    def _clean(self, raw: BinaryIO, clean: BinaryIO) -> Archive:
        """In a thread: it may take a second."""
        rewrite(raw, clean, self._max_build_bytes)
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

    def _keep(self, key: str, kept: CachedBuild) -> CachedBuild:
        """The least recently used ones go when there is too much. What is lost is built again."""
        self._archives[key] = kept
        while self._kept_bytes() > self._max_kept_bytes and len(self._archives) > 1:
            _, (oldest, _) = self._archives.popitem(last=False)
            if all(oldest != each.archive for each in self._archives.values()):  # two builds may be the same bytes
                self._spool.blobs.path(oldest.sha256).unlink(missing_ok=True)
        return kept

    def _kept_bytes(self) -> int:
        return sum(each.archive.size for each in self._archives.values())


def rewrite(raw: BinaryIO, clean: BinaryIO, most_bytes: int) -> None:
    """A node's archive written anew: plain files and folders, of nobody. Raises ValueError, TarError or EOFError.

    Nodes do not see each other's bytes otherwise: what the headers of one say must not be obeyed by another.
    """
    raw.seek(0)
    total, now = 0, int(time.time())
    with (
        tarfile.open(fileobj=raw, mode="r:") as source,
        tarfile.open(fileobj=clean, mode="w", format=tarfile.GNU_FORMAT) as target,
    ):
        for member in source:
            path = PurePosixPath(member.name)
            if path == PurePosixPath("."):
                continue
            if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                raise ValueError(f"{member.name[:80]!r} is no plain file or folder in it")
            total += member.size
            if total > most_bytes:
                raise ValueError(f"it has more than {most_bytes} bytes")
            plain = tarfile.TarInfo(str(path))
            plain.type = tarfile.DIRTYPE if member.isdir() else tarfile.REGTYPE
            plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            plain.mtime = now
            plain.size = 0 if member.isdir() else member.size
            target.addfile(plain, source.extractfile(member) if member.isreg() else None)
