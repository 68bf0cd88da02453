"""One build for several nodes: real shells, real engines, one cache. The compiler is a script that counts its runs."""

from __future__ import annotations

import asyncio
import io
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from sshgrid import toolchains
from sshgrid.engines import AttemptResult
from sshgrid.engines.build_cache import BuildCache, rewrite
from sshgrid.engines.direct import direct_engine
from sshgrid.engines.hosts import BuildNode
from sshgrid.engines.launch import RunSpec
from sshgrid.errors import Dropped
from sshgrid.model import CompileFailed, Exited, Node, Step, ToolchainBroken
from sshgrid.spool.spool import Spool
from sshgrid.ssh.builds import BuildVerbs
from tests.edge.engine_hosts import Host, Kept
from tests.edge.shells import ShellNode

KEY, SHA = "b" * 64, "a" * 64


class Grid:
    """Three nodes of this machine, one spool, and a program whose compiler counts its runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool = Spool(folder / "spool")
        self.hosts = [self._host(name) for name in ("n1", "n2", "n3")]
        self.share(BuildCache(self.spool))

    def _host(self, name: str) -> Host:
        folder = self.folder / name
        folder.mkdir()
        return Host(Node(name, connection="local", workdir=str(folder / "w")), folder)

    def share(self, builds: BuildCache) -> None:
        for host in self.hosts:
            host.engine = direct_engine(host, lambda sha256, host=host: host.blobs / sha256, lambda _: 10.0, builds)  # type: ignore[misc]

    def order(self, host: Host, script: str) -> RunSpec:
        """A program that `script` builds as `exe`; the ledger gets a line before."""
        words = f"echo built >>{self.folder}/ledger; {script}"
        order = host.order(b"#!/bin/sh\necho ran\n", compiler=(("/bin/sh", "-c", words),), run=(b"{dir}/exe",))
        return shared(order, True)

    async def run(self, script: str, *hosts: Host) -> tuple[list[AttemptResult], list[Kept]]:
        """Run the same program on these hosts at the same time; by default on all."""
        chosen = hosts or tuple(self.hosts)
        sinks = [Kept() for _ in chosen]
        orders = [self.order(host, script) for host in chosen]
        finishes = await asyncio.gather(
            *(host.run(order, sink) for host, order, sink in zip(chosen, orders, sinks, strict=True))
        )
        return finishes, sinks

    @property
    def compilations(self) -> int:
        ledger = self.folder / "ledger"
        return len(ledger.read_text().splitlines()) if ledger.exists() else 0

    async def until_compiling(self, times: int) -> None:
        async with asyncio.timeout(20):
            while self.compilations < times:  # noqa: ASYNC110 - it happens in other processes
                await asyncio.sleep(0.01)


def shared(order: RunSpec, yes: bool) -> RunSpec:
    return msgspec.structs.replace(order, recipe=msgspec.structs.replace(order.recipe, shared=yes))


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[Grid]:
    grid = Grid(tmp_path)
    yield grid
    for host in grid.hosts:
        await host.end()
    assert sorted(grid.spool.blobs.incoming.iterdir()) == []


COPY = "sleep 0.3; cp p.sh exe; chmod 755 exe"


async def test_nodes_that_need_the_same_build_compile_it_once(grid: Grid) -> None:
    finishes, sinks = await grid.run(COPY)
    assert [finish.outcome for finish in finishes] == [Exited(0)] * 3
    assert [sink["stdout"] for sink in sinks] == [b"ran\n"] * 3
    assert grid.compilations == 1
    assert sorted(bool(sink.was_compiled) for sink in sinks) == [False, False, True]
    assert all(sink.uploaded_bytes > 10_000 for sink in sinks if not sink.was_compiled), "an archive was sent"
    assert all(not any((Path(host.node.workdir) / "objects").glob("*.*")) for host in grid.hosts)


async def test_a_build_of_a_lost_node_is_still_in_the_spool(grid: Grid) -> None:
    one, two, three = grid.hosts
    await grid.run(COPY, one)
    await grid.run(COPY, two)
    await one.end()
    one.silent = two.silent = True
    await two.end()
    one.silent = two.silent = True
    finishes, sinks = await grid.run(COPY, three)
    assert (finishes[0].outcome, sinks[0].was_compiled, grid.compilations) == (Exited(0), False, 1)


async def test_a_pruned_spool_fetches_a_build_again_and_a_lost_node_means_another_build(grid: Grid) -> None:
    one, two, three = grid.hosts
    await grid.run(COPY, one)
    await grid.run(COPY, two)
    grid.spool.blobs.evict((), 1e12)
    shutil.rmtree(next(path for path in (Path(two.node.workdir) / "builds").iterdir() if path.is_dir()))
    finishes, _ = await grid.run(COPY, three)
    assert (finishes[0].outcome, grid.compilations) == (Exited(0), 1)


async def test_nothing_is_sent_to_a_node_that_has_the_build(grid: Grid) -> None:
    await grid.run(COPY)
    grid.share(BuildCache(grid.spool))  # like after a restart of the master
    await grid.run(COPY, grid.hosts[0])
    _, sinks = await grid.run(COPY, grid.hosts[1])
    assert (sinks[0].uploaded_bytes, grid.compilations) == (0, 1)


async def test_a_compile_error_ends_all_runs_that_wait_for_it_but_no_later_run(grid: Grid) -> None:
    script = "sleep 0.3; echo 'p.sh:1: error'; exit 4"
    finishes, sinks = await grid.run(script)
    assert [finish.outcome for finish in finishes] == [CompileFailed(4)] * 3
    assert [sink["compile"] for sink in sinks] == [b"p.sh:1: error\n"] * 3
    assert grid.compilations == 1
    await grid.run(script, grid.hosts[1])
    assert grid.compilations == 2


async def test_when_the_compiler_of_one_node_is_broken_the_next_one_builds(grid: Grid) -> None:
    script = f"mkdir {grid.folder}/broken 2>/dev/null && exit 127; {COPY}"
    finishes, _ = await grid.run(script)
    kinds = sorted(type(finish.outcome).__name__ for finish in finishes)
    assert kinds == ["Exited", "Exited", "ToolchainBroken"]
    assert isinstance(finishes[0].outcome, ToolchainBroken)
    assert grid.compilations == 2


def gated(grid: Grid) -> str:
    """The first compilation waits for a gate, later ones do not."""
    wait = f"until [ -e {grid.folder}/gate ]; do sleep 0.05; done"
    return f"if mkdir {grid.folder}/first 2>/dev/null; then {wait}; fi; {COPY}"


async def test_runs_stop_waiting_for_a_silent_builder(grid: Grid) -> None:
    one, two, three = grid.hosts
    first = asyncio.create_task(grid.run(gated(grid), one))
    await grid.until_compiling(1)
    waiting = asyncio.create_task(grid.run(gated(grid), two, three))
    await asyncio.wait([waiting], timeout=1.2)
    assert (waiting.done(), grid.compilations) == (False, 1), "a builder that is heard of is waited for"
    one.quiet_seconds = 10.0
    finishes, _ = await asyncio.wait_for(waiting, 20)
    assert ([finish.outcome for finish in finishes], grid.compilations) == ([Exited(0)] * 2, 2)
    (grid.folder / "gate").touch()
    assert (await first)[0][0].outcome == Exited(0), "its build was not in vain for itself"


async def test_when_all_nodes_are_silent_the_builder_is_kept(grid: Grid) -> None:
    one, two, _ = grid.hosts
    first = asyncio.create_task(grid.run(gated(grid), one))
    await grid.until_compiling(1)
    one.quiet_seconds = two.quiet_seconds = 10.0
    waiting = asyncio.create_task(grid.run(gated(grid), two))
    await asyncio.wait([waiting], timeout=1.2)
    (grid.folder / "gate").touch()
    await asyncio.gather(first, waiting)
    assert grid.compilations == 1


async def test_a_builder_whose_attempt_is_cancelled_or_lost_is_replaced_at_once(grid: Grid) -> None:
    one, two, _ = grid.hosts
    first = asyncio.create_task(grid.run(gated(grid), one))
    await grid.until_compiling(1)
    waiting = asyncio.create_task(grid.run(gated(grid), two))
    await asyncio.wait([waiting], timeout=0.3)
    first.cancel()
    finishes, _ = await asyncio.wait_for(waiting, 20)
    assert (finishes[0].outcome, grid.compilations) == (Exited(0), 2)


async def test_a_large_build_stays_where_it_was_made(grid: Grid) -> None:
    grid.share(BuildCache(grid.spool, max_build_bytes=20_000))
    finishes, sinks = await grid.run(f"head -c 100000 /dev/zero >big; {COPY}")
    assert [finish.outcome for finish in finishes] == [Exited(0)] * 3
    assert (grid.compilations, [sink.was_compiled for sink in sinks]) == (3, [True] * 3)


class Judge:
    """A verification of builds that records the questions and returns a fixed answer."""

    def __init__(self, *said: str) -> None:
        self.said = list(said)
        self.asked: list[tuple[str, str, str]] = []

    async def __call__(self, language: str, maker: BuildNode, taker: BuildNode) -> str:
        self.asked.append((language, maker.name, taker.name))
        return self.said.pop(0)


def verified(grid: Grid, judge: Judge) -> BuildCache:
    builds = BuildCache(grid.spool)
    builds.verify = judge
    grid.share(builds)
    order = grid.order

    def with_a_look(host: Host, script: str) -> RunSpec:
        plain = order(host, script)
        return msgspec.structs.replace(plain, recipe=toolchains.verified(plain.recipe, "sh"))

    grid.order = with_a_look  # type: ignore[method-assign]
    return builds


async def test_a_verified_build_is_used_only_after_a_smoke_test_of_its_maker(grid: Grid) -> None:
    one, two, three = grid.hosts
    judge = Judge("", "h1's does not run here")
    builds = verified(grid, judge)
    await grid.run(COPY, one)
    await grid.run(COPY, two)
    _, sinks = await grid.run(COPY, three)
    assert judge.asked == [("sh", "n1", "n2"), ("sh", "n1", "n3")], "whoever sends it, n1 has made it"
    assert (grid.compilations, sinks[0].was_compiled) == (2, True)
    assert sinks[0].uploaded_bytes < 1000, "no archive was sent"
    key = grid.order(three, COPY).recipe.build_key
    assert [builds.why_not_taken(key, host.name) for host in grid.hosts] == ["", "", "h1's does not run here"]


async def test_a_build_used_without_a_smoke_test_does_not_count_as_tested(grid: Grid) -> None:
    one, two, _ = grid.hosts
    await grid.run(COPY, one)
    await grid.run(COPY, two)
    judge = Judge("not this one")
    verified(grid, judge)
    await grid.run(COPY, one)
    await grid.run(COPY, two)
    assert (grid.compilations, judge.asked) == (3, [("sh", "n1", "n2")])


async def test_the_reason_why_a_node_did_not_use_a_build_is_known(grid: Grid) -> None:
    builds = BuildCache(grid.spool, max_build_bytes=20_000)
    grid.share(builds)
    script = f"head -c 100000 /dev/zero >big; {COPY}"
    await grid.run(script, *grid.hosts[:2])
    key = grid.order(grid.hosts[0], script).recipe.build_key
    assert builds.why_not_taken(key, "n2") == "it has more than 20000 bytes"


async def test_a_build_with_links_stays_where_it_was_made(grid: Grid) -> None:
    finishes, _ = await grid.run(f"ln -s /etc/passwd link; {COPY}")
    assert ([finish.outcome for finish in finishes], grid.compilations) == ([Exited(0)] * 3, 3)


async def test_the_size_of_cached_builds_is_bounded(grid: Grid) -> None:
    grid.share(BuildCache(grid.spool, max_kept_bytes=15_000))
    for number in range(3):
        await grid.run(f"echo {number} >number; {COPY}")
    kept = [path for path in grid.spool.blobs.directory.rglob("*") if path.is_file()]
    assert (grid.compilations, len(kept)) == (3, 1)


async def test_a_build_that_is_not_shared_is_made_on_each_node(grid: Grid) -> None:
    await asyncio.gather(*(host.run(shared(grid.order(host, COPY), False)) for host in grid.hosts))
    assert grid.compilations == 3


@pytest.mark.parametrize("who", ["builder", "receiver"])
async def test_a_connection_that_breaks_while_a_build_is_passed_on(
    grid: Grid, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = grid.hosts
    await grid.run(COPY, one)
    verb, host = {"builder": ("pack", one), "receiver": ("unpack", two)}[who]
    whole = getattr(BuildVerbs, verb)

    async def broken(builds: BuildVerbs, *words: object) -> str:
        monkeypatch.setattr(BuildVerbs, verb, whole)
        await builds._control.close()
        raise Dropped(builds._control.node.name, "cut")

    monkeypatch.setattr(BuildVerbs, verb, broken)
    if host is two:
        with pytest.raises(Dropped):
            await grid.run(COPY, two)
        finishes, _ = await grid.run(COPY, two)
        assert (finishes[0].outcome, grid.compilations) == (Exited(0), 1)
    else:
        finishes, _ = await grid.run(COPY, two)
        assert (finishes[0].outcome, grid.compilations) == (Exited(0), 2)


async def test_a_run_that_waits_for_a_build_is_shown_as_compiling(grid: Grid) -> None:
    _, sinks = await grid.run(COPY)
    assert all(Step.COMPILING in sink.steps for sink in sinks)


# --- archives ---------------------------------------------------------------------------------------------------------


def archive(*members: tarfile.TarInfo, content: bytes = b"x") -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return file


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o4777
    info.uid, info.uname = 0, "root"
    return info


HOSTILE = {
    "absolute": member("/etc/cron.d/x"),
    "above": member("../x"),
    "above, inside": member("a/../../x"),
    "link": member("a", tarfile.SYMTYPE, "/etc"),
    "hard link": member("a", tarfile.LNKTYPE, "/etc/passwd"),
    "device": member("a", tarfile.CHRTYPE),
    "pipe": member("a", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_A23_an_archive_with_other_entries_than_files_is_not_passed_on(name: str) -> None:
    with pytest.raises(ValueError, match="not a plain file or folder"):
        rewrite(archive(member("./exe"), HOSTILE[name]), io.BytesIO(), 1 << 20, 0.0)


@pytest.mark.parametrize("junk", [b"", b"junk" * 1000, archive(member("a")).getvalue()[:600]])
def test_A23_bytes_that_are_not_an_archive_are_not_passed_on(junk: bytes) -> None:
    clean = io.BytesIO()
    with pytest.raises((tarfile.TarError, ValueError, EOFError)):
        rewrite(io.BytesIO(junk), clean, 1 << 20, 0.0)


def test_an_archive_above_the_size_limit_is_not_passed_on() -> None:
    with pytest.raises(ValueError, match="more than 5 bytes"):
        rewrite(archive(member("a"), member("b"), content=b"xxx"), io.BytesIO(), 5, 0.0)


def test_only_name_content_and_executable_mode_of_a_file_are_passed_on() -> None:
    plain, long = member("./notes"), "d" * 60 + "/" + "f" * 60 + "/é"
    plain.mode = 0o4644
    clean = io.BytesIO()
    rewrite(archive(member("."), member("./exe"), plain, member(long)), clean, 1 << 20, 0.0)
    clean.seek(0)
    with tarfile.open(fileobj=clean) as tar:
        assert [(each.name, each.mode, each.uid, each.uname) for each in tar] == [
            ("exe", 0o755, 0, ""),
            ("notes", 0o644, 0, ""),
            (long, 0o755, 0, ""),
        ]


# --- the verbs, under every shell -------------------------------------------------------------------------------------


def packed(*members: tarfile.TarInfo, content: bytes = b"#!/bin/sh\necho ran\n") -> bytes:
    clean = io.BytesIO()
    rewrite(archive(*members, content=content), clean, 1 << 20, 0.0)
    return clean.getvalue()


def test_a_build_is_packed_and_unpacked_under_every_shell(node: ShellNode) -> None:
    sha256 = node.put(packed(member("exe"), member("sub", tarfile.DIRTYPE), member("sub/b é.h")))
    assert node.verb("has_build", KEY) == b""
    assert node.verb("unpack_build", KEY, sha256) == b"unpacked\n"
    assert node.verb("has_build", KEY) == b"yes\n"
    folder = node.workdir / "builds" / KEY
    assert (folder / "sub" / "b é.h").read_bytes() == (folder / "exe").read_bytes() == b"#!/bin/sh\necho ran\n"
    assert subprocess.run([folder / "exe"], capture_output=True, check=True).stdout == b"ran\n"
    head, _, rest = node.verb("pack_build", KEY, "1000").partition(b"\n")
    assert head == b"size %d" % len(rest)
    with tarfile.open(fileobj=io.BytesIO(rest)) as tar:
        assert sorted(tar.getnames()) == [".", "./exe", "./sub", "./sub/b é.h"]
    assert node.verb("pack_build", KEY, "0") == b"large\n"
    assert node.verb("pack_build", "c" * 64, "1000") == b"gone\n"
    assert list((node.workdir / "objects").iterdir()) == []


def test_unpacking_twice_or_beside_an_own_build_changes_nothing(node: ShellNode) -> None:
    own = node.workdir / "builds" / KEY
    own.mkdir()
    (own / "exe").write_text("own")
    assert node.verb("unpack_build", KEY, node.put(packed(member("exe")))) == b"unpacked\n"
    assert node.verb("unpack_build", KEY, SHA) == b"unpacked\n", "nor when the object is gone"
    assert [path.name for path in own.iterdir()] == ["exe"]
    assert (own / "exe").read_text() == "own"


@pytest.mark.parametrize("content", [b"no archive", None])
def test_an_archive_that_cannot_be_unpacked_leaves_nothing(node: ShellNode, content: bytes | None) -> None:
    sha256 = SHA if content is None else node.put(content)
    assert node.verb("unpack_build", KEY, sha256).startswith(b"it cannot be unpacked")
    assert [path.name for path in (node.workdir / "builds").iterdir()] == [f"{KEY}.used"]
    assert list((node.workdir / "objects").iterdir()) == []


@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("ldd")), reason="needs gcc and ldd")
def test_a_build_whose_library_is_missing_is_not_used(node: ShellNode, tmp_path: Path) -> None:
    (tmp_path / "lib.c").write_text("int seven(void) { return 7; }\n")
    (tmp_path / "p.c").write_text("int seven(void); int main(void) { return seven(); }\n")
    for words in ("-shared -fPIC -o libseven.so lib.c", "-o exe p.c -L. -lseven"):
        subprocess.run(["gcc", *words.split()], cwd=tmp_path, check=True)
    sha256 = node.put(packed(member("exe"), content=(tmp_path / "exe").read_bytes()))
    expected = b"a program in it needs a library" if has_ldd(node) else b"unpacked"
    assert node.verb("unpack_build", KEY, sha256).startswith(expected)


def has_ldd(node: ShellNode) -> bool:
    return shutil.which("ldd", path=node.path) is not None
