"""Files to a node and back over a real SSH connection to this machine."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from sshgrid.engines.jobscript import job_script
from sshgrid.engines.launch import RunSpec, needed
from sshgrid.errors import Dropped, NodeUnfit
from sshgrid.model import Exited, HostLost, Node, SourceFile
from sshgrid.notation import globs
from sshgrid.ssh import transfer
from sshgrid.ssh.link import Link
from sshgrid.ssh.openssh import OpensshUpload
from sshgrid.testing import until
from tests.edge.engine_hosts import Host, Kept
from tests.lab.machine import is_alive


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(Node("n1", connection="local", workdir=str(tmp_path / "w")), tmp_path)
    yield host
    await host.end()


def objects(host: Host) -> set[str]:
    return {path.name for path in (Path(host.node.workdir) / "objects").iterdir()}


def contents(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        streams = {member.name: tar.extractfile(member) for member in tar}
        return {name: stream.read() for name, stream in streams.items() if stream is not None}


# --- uploads ----------------------------------------------------------------------------------------------------------


async def test_many_small_files_are_one_step_and_each_large_file_is_one(host: Host) -> None:
    link = await host.open()
    dice = Random(1)
    small = [host.put(dice.randbytes(dice.randrange(5000))) for _ in range(300)]
    large = [host.put(dice.randbytes(200_000)) for _ in range(2)]
    sources = [(sha256, host.blobs / sha256) for sha256 in (*small, *large)]
    steps = [count async for count in link.transfer.upload_all(sources)]
    assert (len(steps), steps[1:]) == (3, [200_000, 200_000])
    assert objects(host) == {*small, *large}
    assert await link.transfer.missing([*small, *large]) == []
    for sha256, source in sources:
        assert (Path(host.node.workdir) / "objects" / sha256).read_bytes() == source.read_bytes()


async def test_F25_stream_with_one_wrong_file_leaves_no_object(host: Host) -> None:
    link = await host.open()
    shas = [host.put(f"{number}".encode()) for number in range(10)]
    (host.blobs / shas[7]).write_bytes(b"something else")
    with pytest.raises(NodeUnfit, match="corrupt"):
        async for _ in link.transfer.upload_all([(sha256, host.blobs / sha256) for sha256 in shas]):
            pass
    assert objects(host) == set()


async def test_F25_cut_stream_leaves_no_object(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    link = await host.open()
    sources = [(sha256, host.blobs / sha256) for sha256 in (host.put(f"{n}".encode()) for n in range(10))]
    whole = list(transfer._archive(sources))

    def cut(_: object) -> Iterator[bytes]:
        yield from whole[:5]
        link.control.connection.abort()
        yield from whole[5:]

    monkeypatch.setattr(transfer, "_archive", cut)
    with pytest.raises(Dropped):
        await anext(link.transfer.upload_all(sources))
    monkeypatch.undo()
    link = await host.open()
    assert len(await link.transfer.missing([sha256 for sha256, _ in sources])) == 10
    assert [count async for count in link.transfer.upload_all(sources)] == [sum(map(len, whole))]


STEP_BYTES = 4 << 20  # of remote/node.sh: a cut upload continues at a multiple of it


async def cut_upload(host: Host, content: bytes) -> tuple[str, Path]:
    """Cut an upload in the middle. Return its digest, and the path of the part that is left."""
    link = await host.open()
    sha256 = host.put(content)
    uploading = asyncio.create_task(link.transfer.upload(sha256, host.blobs / sha256))
    part = Path(host.node.workdir) / "objects" / f"{sha256}.part"
    await until(lambda: part.exists() and part.stat().st_size >= 3 * STEP_BYTES, lambda: objects(host))
    link.control.connection.abort()
    with pytest.raises(Dropped):
        await uploading
    writer = part.with_suffix(".by")
    await until(lambda: not (writer.is_symlink() and is_alive(int(re.findall(r"\d+", str(writer.readlink()))[0]))))
    assert part.stat().st_size < len(content), "cut too late"
    return sha256, part


async def test_only_the_rest_of_a_cut_upload_is_sent(host: Host) -> None:
    content = Random(3).randbytes(60_000_000)
    sha256, part = await cut_upload(host, content)
    there = part.stat().st_size // STEP_BYTES * STEP_BYTES
    assert there > 0
    link = await host.open()
    assert await link.transfer.upload(sha256, host.blobs / sha256) == len(content) - there
    assert objects(host) == {sha256}
    assert part.with_suffix("").read_bytes() == content


async def test_F25_damaged_part_of_an_upload_is_sent_again_in_full(host: Host) -> None:
    content = Random(4).randbytes(60_000_000)
    sha256, part = await cut_upload(host, content)
    there = part.stat().st_size // STEP_BYTES * STEP_BYTES
    with part.open("r+b") as file:
        file.write(b"something else")
    link = await host.open()
    assert await link.transfer.upload(sha256, host.blobs / sha256) == 2 * len(content) - there
    assert objects(host) == {sha256}
    assert part.with_suffix("").read_bytes() == content


async def test_F25_part_that_is_longer_than_the_file_is_not_used(host: Host) -> None:
    link = await host.open()
    content = Random(5).randbytes(9_000_000)
    sha256 = host.put(content)
    (Path(host.node.workdir) / "objects" / f"{sha256}.part").write_bytes(content + b"more")
    assert await link.transfer.upload(sha256, host.blobs / sha256) == len(content)
    assert objects(host) == {sha256}


async def test_upload_uses_the_connection_when_the_systems_ssh_fails(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = await host.open()
    tries: list[str] = []

    async def nowhere(command: str) -> OpensshUpload:
        tries.append(command)
        process = await asyncio.create_subprocess_exec("false", stdout=asyncio.subprocess.PIPE)
        return OpensshUpload(process, os.open(os.devnull, os.O_WRONLY), str(tmp_path / "known"))

    monkeypatch.setattr(link.transfer, "_open_openssh", nowhere)
    for number in range(2):
        sha256 = host.put(bytes([number]) * 40_000_000)
        assert await link.transfer.upload(sha256, host.blobs / sha256) == 40_000_000
        assert sha256 in objects(host)
    assert len(tries) == 1, "the system's ssh is not tried again on this connection"


async def test_cancelled_upload_leaves_no_process_and_no_folder(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = await host.open()
    begun = asyncio.Event()
    folder = tmp_path / "openssh"
    folder.mkdir()
    processes = []

    async def mute(_: str) -> OpensshUpload:
        process = await asyncio.create_subprocess_exec("sleep", "60", stdout=asyncio.subprocess.PIPE)
        processes.append(process)
        begun.set()
        return OpensshUpload(process, os.open(os.devnull, os.O_WRONLY), str(folder))

    monkeypatch.setattr(link.transfer, "_open_openssh", mute)
    sha256 = host.put(bytes(40_000_000))
    upload = asyncio.create_task(link.transfer.upload(sha256, host.blobs / sha256))
    await begun.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    try:
        assert [process.returncode for process in processes] == [-9]
        assert not folder.exists()
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()


async def another_link(host: Host) -> Link:
    return await Link.open(host.node, host.how, ("sh",), host.samples.append)


async def test_two_uploads_of_one_file_at_the_same_time_leave_one_complete_object(host: Host) -> None:
    """Two masters can share an account."""
    content = Random(6).randbytes(30_000_000)
    sha256 = host.put(content)
    links = [await another_link(host), await another_link(host)]
    sent = await asyncio.gather(*(link.transfer.upload(sha256, host.blobs / sha256) for link in links))
    assert max(sent) == len(content)
    assert objects(host) == {sha256}
    assert (Path(host.node.workdir) / "objects" / sha256).read_bytes() == content
    for link in links:
        await link.close()


async def test_stalled_upload_is_taken_over(host: Host) -> None:
    """The connection of the first upload is cut, and neither end has noticed."""
    content = Random(7).randbytes(30_000_000)
    sha256 = host.put(content)
    first = await another_link(host)
    begun = first.transfer._upload(sha256, host.blobs / sha256)
    for _ in range(60):
        await anext(begun)  # then the upload stalls
    part = Path(host.node.workdir) / "objects" / f"{sha256}.part"
    async with asyncio.timeout(20):
        seen = 0
        while part.stat().st_size != seen or seen < 2 * STEP_BYTES:
            seen = part.stat().st_size
            await asyncio.sleep(0.5)  # the part has stopped growing when it has the same size after this time
    second = await another_link(host)
    assert await second.transfer.upload(sha256, host.blobs / sha256) < len(content)
    assert objects(host) == {sha256}
    assert sum([count async for count in begun]) < len(content), "the first upload has sent everything"
    assert objects(host) == {sha256}
    assert (Path(host.node.workdir) / "objects" / sha256).read_bytes() == content
    await first.close()
    await second.close()


# --- in the run's folder ----------------------------------------------------------------------------------------------


def with_data(host: Host, order: RunSpec, data: dict[str, bytes], packed: dict[str, bytes]) -> RunSpec:
    files = tuple(
        SourceFile(name, host.put(content), len(content), name.endswith(".sh")) for name, content in data.items()
    )
    packs: tuple[SourceFile, ...] = ()
    if packed:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, content in packed.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o755 if name.endswith(".sh") else 0o644
                tar.addfile(member, io.BytesIO(content))
        packs = (SourceFile("pack", host.put(made.getvalue()), len(made.getvalue())),)
    program = msgspec.structs.replace(order.program, data=files, packs=packs)
    return msgspec.structs.replace(order, program=program)


LOOK = b"find . -type f -exec sh -c 'test -x \"$1\" && printf x; cat \"$1\"; echo' - {} ';' | LC_ALL=C sort\n"


@pytest.mark.parametrize("warm", [False, True])
async def test_data_is_writable_in_the_run_folder_with_and_without_a_cached_build(host: Host, warm: bool) -> None:
    order = host.order(LOOK + b"echo spoiled | tee one 'it''s.sh' p/two >/dev/null\n")
    if warm:
        await host.run(order)
        order = host.order(LOOK + b"echo spoiled | tee one 'it''s.sh' p/two >/dev/null\n")
    for again in range(2):
        kept = Kept()
        full = with_data(host, order, {"one": b"1", "it's.sh": b"tool"}, {"p/two": b"2", "p/q/$(id).sh": b"3"})
        assert (await host.run(full, kept)).outcome == Exited(0)
        assert kept["stdout"] == b"1\n2\nx3\nxtool\n"
        assert (kept.uploaded_bytes == 0) == bool(again)
        order = host.order(LOOK + b"echo spoiled | tee one 'it''s.sh' p/two >/dev/null\n")


LARGE = 40_000_000


async def printed(sink: Kept) -> None:
    """Wait until the run has printed something: its files are in its folder then."""
    async with asyncio.timeout(30):
        await sink.has_output.wait()


@pytest.mark.parametrize("writes", [False, True])
async def test_large_file_is_moved_to_its_run_and_back_unless_it_was_changed(host: Host, writes: bool) -> None:
    content = Random(8).randbytes(LARGE)
    folder = Path(host.node.workdir)
    for again in range(2):
        order = with_data(
            host, host.order(b"cksum <d/big; test -n '%s' || echo x >>d/big\n" % (b"" if writes else b"no")), {}, {}
        )
        big = SourceFile("d/big", host.put(content), LARGE)
        order = msgspec.structs.replace(order, program=msgspec.structs.replace(order.program, data=(big,)))
        kept = Kept()
        assert (await host.run(order, kept)).outcome == Exited(0)
        assert int(kept["stdout"].split()[1]) == LARGE, "the run sees what an earlier run has written"
        assert big.sha256 not in objects(host), "the object was not moved to the run"
        assert (folder / "runs" / order.run / "work/d/big").stat().st_nlink == 1
        sent = kept.uploaded_bytes
        assert (sent < 10_000) == (bool(again) and not writes), sent
        await host.engine.runs.discard(order.run)
        assert {name for name in objects(host) if big.sha256 in name} == {f"{big.sha256}.part"}


async def test_file_in_use_by_a_run_is_available_to_another_run(host: Host) -> None:
    content = Random(9).randbytes(LARGE)
    big = SourceFile("big", host.put(content), LARGE)
    orders = [host.order(b"cksum <big; while [ ! -e ../open ]; do sleep 0.1; done\n") for _ in range(2)]
    orders = [msgspec.structs.replace(o, program=msgspec.structs.replace(o.program, data=(big,))) for o in orders]
    sinks = [Kept(), Kept()]
    runs = []
    for order, sink in zip(orders, sinks, strict=True):
        runs.append(asyncio.create_task(host.run(order, sink)))
        await printed(sink)
    for order in orders:
        (Path(host.node.workdir) / "runs" / order.run / "open").touch()
    assert [(await run).outcome for run in runs] == [Exited(0), Exited(0)]
    assert sinks[0]["stdout"] == sinks[1]["stdout"]
    assert sinks[1].uploaded_bytes < 10_000, "the file was sent for the second run as well"


async def test_run_that_changes_a_file_does_not_change_it_for_another_run(host: Host) -> None:
    content = Random(11).randbytes(LARGE)
    big = SourceFile("big", host.put(content), LARGE)
    wait = b"while [ ! -e ../open ]; do sleep 0.1; done\n"
    first = host.order(b"printf spoiled 1<>big; echo done\n" + wait)
    first = msgspec.structs.replace(first, program=msgspec.structs.replace(first.program, data=(big,)))
    sink = Kept()
    running = asyncio.create_task(host.run(first, sink))
    await printed(sink)
    second = host.order(b'cmp big "$1"\n', os.fsencode(host.blobs / big.sha256))
    second = msgspec.structs.replace(second, program=msgspec.structs.replace(second.program, data=(big,)))
    assert (await host.run(second)).outcome == Exited(0)
    (Path(host.node.workdir) / "runs" / first.run / "open").touch()
    assert (await running).outcome == Exited(0)


async def test_large_file_can_be_data_and_standard_input_of_one_run(host: Host) -> None:
    content = Random(12).randbytes(LARGE)
    big = SourceFile("big", host.put(content), LARGE)
    order = host.order(b"cmp - big && echo same\n")
    order = msgspec.structs.replace(order, program=msgspec.structs.replace(order.program, data=(big,), stdin=big))
    sink = Kept()
    assert (await host.run(order, sink)).outcome == Exited(0)
    assert sink["stdout"] == b"same\n"


async def test_file_that_a_prepared_run_needs_is_not_moved_away(host: Host) -> None:
    """The run that needs the file is prepared, and its program starts later."""
    content = Random(13).randbytes(LARGE)
    big = SourceFile("big", host.put(content), LARGE)
    link = await host.open()
    reads, takes = host.order(b"cksum\n"), host.order(b"cksum <big\n")
    reads = msgspec.structs.replace(reads, program=msgspec.structs.replace(reads.program, stdin=big))
    takes = msgspec.structs.replace(takes, program=msgspec.structs.replace(takes.program, data=(big,)), lend=True)
    await link.transfer.upload(big.sha256, host.blobs / big.sha256)
    script = job_script(reads, link.facts)
    layout = sorted({file.sha256 for _, file in reads.recipe.layout})
    for sha256 in layout:
        await link.transfer.upload(sha256, host.blobs / sha256)
    not_after = host.uptime_now() + 60
    started = await link.runs.start(
        reads.run, not_after, script, reads.recipe.build_key, needed(reads), layout, "prepare"
    )
    assert started.word == "claimed"
    assert (await host.run(takes)).outcome == Exited(0)
    assert big.sha256 in objects(host)


async def test_file_that_a_program_has_moved_or_linked_is_not_moved_back(host: Host) -> None:
    content = Random(10).randbytes(LARGE)
    big = SourceFile("d/big", host.put(content), LARGE)
    mine = Path(host.node.workdir).parent / "mine"
    mine.mkdir()
    (mine / "big").write_text("mine")
    for script in (b'ln d/big "$1/kept"\n', b'mv d gone && ln -s "$1" d\n'):
        order = host.order(script, os.fsencode(mine))
        order = msgspec.structs.replace(order, program=msgspec.structs.replace(order.program, data=(big,)))
        assert (await host.run(order)).outcome == Exited(0)
        await host.engine.runs.discard(order.run)
        assert not [name for name in objects(host) if big.sha256 in name]
    assert (mine / "big").read_text() == "mine"
    assert (mine / "kept").read_bytes() == content


async def test_F24_data_that_does_not_fit_is_a_fault_of_the_node(host: Host) -> None:
    order = with_data(host, host.order(b"echo ran\n"), {}, {"a": b"1"})
    sha256 = order.program.packs[0].sha256
    (host.blobs / sha256).write_bytes(b"no archive")
    link = await host.open()
    (Path(host.node.workdir) / "objects" / sha256).write_bytes(b"no archive")
    assert await link.transfer.missing([sha256]) == []
    kept = Kept()
    outcome = (await host.run(order, kept)).outcome
    assert isinstance(outcome, HostLost)
    assert "files of the run" in outcome.reason
    assert kept["stdout"] == b""


# --- downloads --------------------------------------------------------------------------------------------------------

AWKWARD = ["a b", "it's", "-T", "back\\nslash", "tab\there"[:3], "ü", "$(id)", "*", "%s", "[x]", "dir/deep/.dot"]
TRICKS = b"""mkdir -p dir/deep inner
for name in "$@"; do printf %s "$name" >"./$name"; done
ln -s "a b" near; ln -s /etc/passwd far; ln -s .. up; ln -s dir folder; ln -s nowhere broken; ln "a b" hard
ln -s ../far inner/twice
mkfifo fifo
printf x >"new
line"
"""


async def test_every_file_name_is_fetched_and_links_do_not_lead_out(host: Host) -> None:
    order = host.order(TRICKS, *(name.encode() for name in AWKWARD))
    order = msgspec.structs.replace(order, program=msgspec.structs.replace(order.program, fetch=(".",)))
    kept = Kept()
    assert (await host.run(order, kept)).outcome == Exited(0)
    found = {name.removeprefix("./"): content for name, content in contents(kept["files"]).items()}
    hard = {"near": b"a b", "hard": b"a b"}
    assert found == {name: name.encode() for name in AWKWARD} | hard
    assert kept.fetched_files is not None
    assert (kept.fetched_files.files, kept.fetched_files.whole) == (len(found), True)
    text = "\n".join(kept.fetched_files.warnings)
    assert all(name in text for name in ("far", "up", "folder", "broken", "inner/twice", "fifo", "line break"))


async def test_unreadable_file_is_reported_and_the_others_are_fetched(host: Host) -> None:
    order = host.order(b"echo 1 >a; echo 2 >b\n")
    order = msgspec.structs.replace(order, program=msgspec.structs.replace(order.program, fetch=("*",)))
    await host.run(order)
    link = await host.open()
    archive = b"".join([piece async for piece in link.transfer.archive(order.run, ["a", "gone", "b"])])
    assert contents(archive) == {"./a": b"1\n", "./b": b"2\n"}
    assert b"gone" in await link.runs.read_piece(order.run, "fetch.err", 0, 1000)


async def test_without_tar_files_are_fetched_in_pieces(host: Host) -> None:
    link = await host.open()
    link.control.facts = msgspec.structs.replace(link.facts, helpers=link.facts.helpers - {"tar"})
    order = host.order(b"mkdir out; head -c 3000000 /dev/zero >out/big; echo x >out/small; : >out/empty\n")
    order = msgspec.structs.replace(order, program=msgspec.structs.replace(order.program, fetch=("out",)))
    kept = Kept()
    assert (await host.run(order, kept)).outcome == Exited(0)
    assert contents(kept["files"]) == {"./out/big": bytes(3_000_000), "./out/small": b"x\n", "./out/empty": b""}
    packed = with_data(host, host.order(b"echo x\n"), {}, {"a": b"1"})
    with pytest.raises(NodeUnfit, match="lacks tar"):
        await host.run(packed)


async def test_more_bytes_than_announced_are_not_taken(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node announces a wrong size, or another process still writes to the file."""
    order = host.order(b"head -c 5000000 /dev/zero >big\n")
    order = msgspec.structs.replace(order, program=msgspec.structs.replace(order.program, fetch=("big",)))
    real = globs.parse_listing

    def lying(output: bytes, more: bool = False) -> globs.Listing:
        return real(output.replace(b"5000000", b"5"), more)

    monkeypatch.setattr(transfer, "parse_listing", lying)
    kept = Kept()
    assert (await host.run(order, kept)).outcome == Exited(0)
    assert len(kept["files"]) < 1_000_000
    assert kept.fetched_files is not None
    assert not kept.fetched_files.whole
    assert "more than it has announced" in kept.fetched_files.warnings[0]


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_listing_is_the_same_in_every_shell(tmp_path: Path, shell: str) -> None:
    (tmp_path / "w/d").mkdir(parents=True)
    (tmp_path / "w/d/a b").write_text("123")
    (tmp_path / "w/x").write_text("")
    (tmp_path / "w/link").symlink_to("d/a b")
    (tmp_path / "w/out").symlink_to("/etc/passwd")
    (tmp_path / "w/dir").symlink_to("d")
    os.mkfifo(tmp_path / "w/fifo")
    script = b'%s\nprintf "%%s\\n" "$answer"\n' % transfer._LIST
    words = ["sh"] if shell == "busybox" else []
    done = subprocess.run(
        [shell, *words, "-s", str(tmp_path / "w"), *globs.find_arguments(["**"])],
        input=script,
        capture_output=True,
        check=True,
    )
    *lines, answer = done.stdout.decode().splitlines()
    assert answer == "listed"
    assert sorted(lines) == ["d ./dir", "f 0 ./x", "f 3 ./d/a b", "f 3 ./link", "o ./out", "s ./fifo"]
