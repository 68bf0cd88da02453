"""The direct engine over a real SSH connection to this machine, and the connection itself."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from sshgrid.engines import Keyboard, follow
from sshgrid.engines.launch import RunSpec
from sshgrid.errors import Dropped, NodeUnfit
from sshgrid.model import (
    CompileFailed,
    Exited,
    HostLost,
    Limits,
    Node,
    OutOfMemory,
    OutputLimit,
    ProcessLimit,
    Step,
    TimedOut,
    ToolchainBroken,
)
from sshgrid.ssh.library import LIBRARY_NAME
from sshgrid.ssh.link import Link
from tests.edge.engine_hosts import Host, Kept
from tests.lab.machine import descendants, is_alive

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
PYTHON = sys.executable.encode()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    before = set(descendants(os.getpid()))
    host = Host(Node("n1", connection="local", workdir=str(tmp_path / "w")), tmp_path)
    yield host
    await host.end()
    await until(lambda: set(descendants(os.getpid())) <= before, "every shell of the connection to end")


async def until(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110 - what is waited for happens in other processes
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {seconds:g} s for {what}") from None


def folder(host: Host, order: RunSpec) -> Path:
    return Path(host.node.workdir) / "runs" / order.run


def pid_of(host: Host, order: RunSpec, name: str) -> int:
    return int(str((folder(host, order) / name).readlink()).partition(",")[0].removeprefix("pid="))


async def begun(host: Host, order: RunSpec, words: bytes = b"ready") -> None:
    out = folder(host, order) / "out"
    await until(lambda: out.exists() and words in out.read_bytes(), f"{words!r}")


# --- the connection ---------------------------------------------------------------------------------------------------


async def test_a_link_has_facts_and_load_samples_and_closes_quietly(host: Host) -> None:
    link = await host.open()
    assert link.facts.workdir == host.node.workdir
    assert set(link.found.tools) == {"sh"}
    await until(lambda: len(host.samples) >= 2, "two load samples")
    assert host.samples[0].busy_cores is None
    assert host.samples[1].busy_cores is not None
    await link.close()
    assert isinstance(link.lost.result(), Dropped)
    with pytest.raises(Dropped):
        await link.runs.poll(["ab-1.1"])
    with pytest.raises(Dropped):
        await link.runs.start("ab-1.1", 1e9, b"", "b", [], [])


async def test_a_cancelled_request_does_not_shift_later_answers(host: Host) -> None:
    link, random = await host.open(), Random(1)
    contents = {f"f{number}": f"content of {number} ".encode() * 2000 for number in range(20)}
    run = Path(host.node.workdir) / "runs" / f"{host.grid}-1.1"
    run.mkdir()
    for name, content in contents.items():
        (run / name).write_bytes(content)

    async def ask(name: str) -> bool:
        return await link.runs.read_piece(run.name, name, 0, 10**6) == contents[name]

    right = 0
    for _ in range(15):
        tasks = [asyncio.create_task(ask(random.choice(sorted(contents)))) for _ in range(8)]
        for _ in range(random.randrange(12)):
            await asyncio.sleep(0)
        for task in random.sample(tasks, 4):
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(answer is True or isinstance(answer, asyncio.CancelledError) for answer in answers)
        right += sum(answer is True for answer in answers)
    assert right >= 60


async def test_a_connection_that_breaks_during_a_request_is_dropped_not_unreachable(host: Host) -> None:
    link = await host.open()
    asking = [asyncio.create_task(link.runs.poll(["ab-1.1"])) for _ in range(3)]
    await asyncio.sleep(0)
    link.control.connection.abort()
    for answer in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(answer, Dropped)
    await asyncio.wait_for(asyncio.shield(link.lost), 5)
    for verb in (
        link.runs.signal("ab-1.1", "TERM"),
        link.runs.clean(["ab-1.1"]),
        link.runs.claim("ab-1.1"),
        link.runs.names_of_grid("ab"),
    ):
        with pytest.raises(Dropped):
            await verb


async def test_a_function_library_emptied_by_a_power_cut_is_written_again(host: Host) -> None:
    await host.open()
    await host.close()
    library = Path(host.node.workdir) / "bin" / LIBRARY_NAME
    right = library.read_bytes()
    for wrong in (b"", right[:100]):
        library.write_bytes(wrong)
        assert (await host.run(host.order(b"exit 3"))).outcome == Exited(3)
        assert library.read_bytes() == right
        await host.close()


async def test_a_slow_answer_is_waited_for_while_bytes_arrive(host: Host) -> None:
    link = await host.open()
    status, output = await link.control.shell.request(b"for i in 1 2 3 4 5 6; do sleep 0.2; echo $i; done", 0.6)
    assert (status, output) == (0, b"1\n2\n3\n4\n5\n6\n")
    with pytest.raises(Dropped, match=r"no answer for 0\.3 s"):
        await link.control.shell.request(b"sleep 1", 0.3)


# --- uploads ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sftp", "channel"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def link_by(host: Host, way: str) -> Link:
    link = await host.open()
    link.transfer.has_sftp = way == "sftp"
    return link


def objects(host: Host) -> list[str]:
    return [path.name for path in (Path(host.node.workdir) / "objects").iterdir()]


async def test_F25_an_object_has_exactly_the_bytes_that_were_sent(host: Host, way: str) -> None:
    link = await link_by(host, way)
    content = Random(2).randbytes(3_000_001)
    sha256 = host.put(content)
    assert await link.transfer.upload(sha256, host.blobs / sha256) == len(content)
    assert await link.transfer.missing([sha256, "0" * 64]) == ["0" * 64]
    assert (Path(host.node.workdir) / "objects" / sha256).read_bytes() == content
    wrong = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(NodeUnfit, match="corrupt"):
        await link.transfer.upload(wrong, host.blobs / sha256)
    assert objects(host) == [sha256]


async def test_F25_an_interrupted_upload_never_becomes_an_object(host: Host, way: str) -> None:
    link = await link_by(host, way)
    sha256 = host.put(bytes(60_000_000))
    uploading = asyncio.create_task(link.transfer.upload(sha256, host.blobs / sha256))
    await until(lambda: bool(objects(host)), "a part to arrive")
    link.control.connection.abort()
    with pytest.raises(Dropped):
        await uploading
    link = await link_by(host, way)
    assert await link.transfer.missing([sha256]) == [sha256]
    await link.transfer.upload(sha256, host.blobs / sha256)
    assert sha256 in objects(host)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "w"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@needs_root
async def test_F24_an_upload_to_a_full_disk_is_the_node_s_fault_and_leaves_nothing(
    small_disk: Path, host: Host, way: str
) -> None:
    link = await link_by(host, way)
    sha256 = host.put(bytes(5_000_000))
    with pytest.raises(NodeUnfit, match="disk full"):
        await link.transfer.upload(sha256, host.blobs / sha256)
    assert objects(host) == []
    assert not link.lost.done()


# --- runs -------------------------------------------------------------------------------------------------------------


async def test_a_run_from_upload_to_record(host: Host) -> None:
    order = host.order(b'echo "$1"; echo err >&2; cat; exit 3', b"a\nb", stdin=b"typed")
    sink = Kept()
    finish = await host.run(order, sink)
    assert finish.outcome == Exited(3)
    assert (sink["stdout"], sink["stderr"]) == (b"a\nb\ntyped", b"err\n")
    assert sink.uploaded_bytes == len(b'echo "$1"; echo err >&2; cat; exit 3') + 5
    assert sink.steps[0] is Step.UPLOADING
    assert sink.steps[-1] is Step.FETCHING
    await host.engine.runs.discard(order.run)
    assert not folder(host, order).exists()


async def test_outputs_of_concurrent_runs_do_not_mix(host: Host) -> None:
    async def one(number: int) -> None:
        word = b"%d " % number
        order, sink = (
            host.order(b'for i in 1 2 3; do echo "$@"; done; exit "$2"', word * 3000, b"%d" % (number % 7)),
            Kept(),
        )
        assert (await host.run(order, sink)).outcome == Exited(number % 7)
        assert sink["stdout"] == (word * 3000 + b" %d\n" % (number % 7)) * 3
        await host.engine.runs.discard(order.run)

    await asyncio.gather(*(one(number) for number in range(40)))
    assert host.dials == 1


async def test_F8_a_connection_that_breaks_repeatedly_does_not_affect_a_run(host: Host) -> None:
    """The program is started once, and its output is the same as if nothing had happened."""
    loop = b"i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); [ $((i%100)) != 0 ] || sleep 0.05; done"
    source = b"echo x >>../../../started; " + loop
    order, sink = host.order(source), Kept()
    running = asyncio.create_task(host.run(order, sink))
    for size in (500, 5000, 15000):
        await until(lambda size=size: len(sink["stdout"]) > size, f"{size} bytes")  # type: ignore[misc]
        assert host.link
        host.link.control.connection.abort()
    assert (await running).outcome == Exited(0)
    assert sink["stdout"] == b"".join(b"line %d\n" % number for number in range(3000))
    assert (Path(host.node.workdir) / "started").read_text() == "x\n"
    assert host.dials == 4


async def test_F10_a_new_master_continues_reading_where_the_old_one_stopped(host: Host) -> None:
    order, old = (
        host.order(b"echo first; echo ready; until [ -e ../go ]; do sleep 0.02; done; echo last; exit 4"),
        Kept(),
    )
    running = asyncio.create_task(host.run(order, old))
    await until(lambda: old["stdout"] == b"first\nready\n", "the first words")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await host.close()
    (folder(host, order) / "go").touch()
    host.engine = host.new_engine()
    new = Kept(stdout=old["stdout"])
    assert (await host.run(order, new, resume=True)).outcome == Exited(4)
    assert new["stdout"] == b"first\nready\nlast\n"


async def test_F11_a_run_that_never_began_cannot_begin_after_a_resume(host: Host) -> None:
    order = host.order(b"echo ran")
    with pytest.raises(NodeUnfit, match="never began"):
        await host.run(order, resume=True)
    link = await host.open()
    assert not await link.runs.claim(order.run)


async def test_a_run_that_was_refused_is_not_waited_for(host: Host) -> None:
    order = host.order(b"echo ran")
    assert await host.engine.runs.refuse(order.run)
    with pytest.raises(NodeUnfit, match="refused"):
        await asyncio.wait_for(host.run(order, resume=True), 5)


async def test_a_wrapper_that_never_starts_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "BEGIN_SECONDS", 0.3)
    order = msgspec.structs.replace(host.order(b"echo ran"), interactive=True)
    await host.engine.runs._starter.start(order, Kept())
    with pytest.raises(NodeUnfit, match="vanished"):
        await asyncio.wait_for(host.run(order, resume=True), 10)


async def test_F19_a_killed_wrapper_is_a_lost_run_and_its_program_is_killed_first(host: Host) -> None:
    order = host.order(b"echo ready; exec sleep 1000")
    running = asyncio.create_task(host.run(order))
    await begun(host, order)
    program = pid_of(host, order, "child")
    os.kill(pid_of(host, order, "pid"), signal.SIGKILL)
    with pytest.raises(NodeUnfit, match="vanished"):
        await running
    await until(lambda: not is_alive(program), "the program to be gone", 1)


async def test_a_silent_host_is_dropped_when_patience_ends(host: Host) -> None:
    order = host.order(b"echo ready; exec sleep 1000")
    running = asyncio.create_task(host.run(order))
    await begun(host, order)
    host.silent = True
    assert host.link
    host.link.control.connection.abort()
    with pytest.raises(Dropped):
        await running


async def test_signals_reach_a_run_and_none_an_ended_one(host: Host) -> None:
    order = host.order(b"trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.02; done")
    sink = Kept()
    running = asyncio.create_task(host.run(order, sink))
    await begun(host, order)
    assert await host.engine.runs.signal(order.run, "USR1")
    assert (await running).outcome == Exited(5)
    assert sink["stdout"] == b"ready\ngot\n"
    assert not await host.engine.runs.signal(order.run, "TERM")


# --- outcomes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "limits", "outcome"),
    [
        (b"exec sleep 1000", Limits(wall_seconds=0.2), TimedOut(0.2)),
        (b"exec sleep 1000", Limits(wall_seconds=0.001), TimedOut(0.001)),
        (b"yes; sleep 1000", Limits(output_bytes=1000), OutputLimit(1000)),
        (
            b"exec %s -c 'x = b\"x\" * 150000000; import time; time.sleep(99)'" % PYTHON,
            Limits(memory_bytes=100 << 20),
            OutOfMemory(100 << 20),
        ),
        (b"for each in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait", Limits(processes=5), ProcessLimit(5)),
        (b"exit 255", Limits(1000, 1 << 30, 1 << 30, 100), Exited(255)),
    ],
    ids=["wall", "tiny wall", "output", "memory", "processes", "none passed"],
)
async def test_limits_are_verdicts(host: Host, source: bytes, limits: Limits, outcome: object) -> None:
    assert (await host.run(host.order(source, limits=limits))).outcome == outcome


@pytest.mark.parametrize(
    ("script", "outcome", "words"),
    [
        ("echo p.sh:1: wrong; exit 1", CompileFailed(1), b"p.sh:1: wrong\n"),
        ("exit 74", CompileFailed(74), b""),
        ("exec /no/such/compiler", ToolchainBroken, b""),
        ("kill -SEGV $$", ToolchainBroken, b""),
        ("echo 'internal compiler error'; exit 4", ToolchainBroken, b""),
        ("echo 'as: No space left on device'; exit 1", HostLost, b""),
    ],
)
async def test_a_failed_build_is_blamed_on_program_toolchain_or_node(
    host: Host, script: str, outcome: object, words: bytes
) -> None:
    sink = Kept()
    order = host.order(b"", compiler=(("/bin/sh", "-c", script),), run=(b"{dir}/exe",))
    finish = await host.run(order, sink)
    assert finish.outcome == outcome or (isinstance(outcome, type) and isinstance(finish.outcome, outcome))
    assert sink["compile"] == words
    assert Step.RUNNING not in sink.steps


async def test_a_missing_tool_is_the_toolchain_s_fault(host: Host) -> None:
    finish = await host.run(host.order(b"", run=(b"/no/such/python3", b"{dir}/p.sh")))
    assert finish.outcome == ToolchainBroken("/no/such/python3 is no longer there")


async def test_a_program_that_cannot_be_started_is_the_node_s_fault(host: Host) -> None:
    order = host.order(b"cat", stdin=b"words")
    assert order.program.stdin
    await host.engine.runs._starter.start(msgspec.structs.replace(order, interactive=True), Kept())
    (Path(host.node.workdir) / "objects" / order.program.stdin.sha256).unlink()
    link = await host.open()
    await link.control.request(
        "eval", f"INTERACTIVE=0; sed -i s/INTERACTIVE=1/INTERACTIVE=0/ $W/runs/{order.run}/job.sh"
    )
    link.runs._starter.shell.write(f"launch {order.run}\n".encode())
    finish = await host.run(order, resume=True)
    assert isinstance(finish.outcome, HostLost)
    assert "could not be started" in finish.outcome.reason


async def test_runs_that_need_the_same_build_compile_once(host: Host) -> None:
    once = "echo x >>../../compilations; sleep 0.2; cp p.sh exe"
    orders = [
        host.order(b"exit 6", compiler=(("/bin/sh", "-c", once),), run=(b"/bin/sh", b"{dir}/exe")) for _ in range(8)
    ]
    sinks = [Kept() for _ in orders]
    finishes = await asyncio.gather(*map(host.run, orders, sinks))
    assert {finish.outcome for finish in finishes} == {Exited(6)}
    assert (Path(host.node.workdir) / "compilations").read_text() == "x\n"
    assert sorted(sink.was_compiled or False for sink in sinks) == [False] * 7 + [True]


async def test_a_run_waits_for_a_build_but_not_for_the_run_that_makes_it(host: Host) -> None:
    meets = b"touch ../../../began.$1; while [ ! -e ../../../began.$2 ]; do sleep 0.02; done; exit 6"
    orders = [host.order(meets, b"a", b"b"), host.order(meets, b"b", b"a")]
    async with asyncio.timeout(20):
        finishes = await asyncio.gather(*map(host.run, orders))
    assert [finish.outcome for finish in finishes] == [Exited(6), Exited(6)]


# --- conversations ----------------------------------------------------------------------------------------------------


async def converse(
    host: Host, source: bytes, terminal: bool, typed: Callable[[Keyboard, Kept], Coroutine[None, None, None]]
) -> Kept:
    order = msgspec.structs.replace(host.order(source), interactive=True, terminal=terminal)
    sink: Kept = Kept()
    keyboard: Keyboard = asyncio.Queue()
    typing = asyncio.create_task(typed(keyboard, sink))
    finish = await asyncio.wait_for(host.engine.conversations.converse(order, sink, keyboard), 20)
    await typing
    assert finish.outcome == Exited(7)
    return sink


async def test_an_interactive_run_reads_what_is_typed_and_keeps_its_streams_apart(host: Host) -> None:
    async def typed(keyboard: Keyboard, sink: Kept) -> None:
        await until(lambda: b"name?" in sink["stdout"], "the question")
        await keyboard.put(b"An")
        await keyboard.put(b"na\n")
        await keyboard.put(b"")

    sink = await converse(host, b"echo name?; read n; echo hello $n; echo err >&2; cat; exit 7", False, typed)
    assert (sink["stdout"], sink["stderr"]) == (b"name?\nhello Anna\n", b"err\n")


async def test_an_interactive_run_has_a_terminal_and_its_size(host: Host) -> None:
    async def typed(keyboard: Keyboard, sink: Kept) -> None:
        await until(lambda: b"ready" in sink["stdout"], "the program")
        await keyboard.put((132, 43))
        await until(lambda: b"43 132" in sink["stdout"], "the new size")
        await keyboard.put(b"\x03")

    source = (
        b"trap 'exit 7' INT; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo ready; while :; do stty size; sleep 0.02; done"
    )
    sink = await converse(host, source, True, typed)
    assert b"\r\n" in sink["stdout"]
