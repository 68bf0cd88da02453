"""The functions of the scripts on nodes, under every shell that a node can have: start, run, record, poll."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sshgrid.errors import NodeUnfit
from sshgrid.ssh.parsers import LoadMeter, RunLook
from tests.edge.shells import REMOTE, ShellNode
from tests.lab.machine import argv_of, is_alive, uptime, wait_until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PYTHON = sys.executable.encode()
ALL_BYTES = bytes(range(1, 256))


def code(look: RunLook) -> int | None:
    return look.record.code if look.record else None


def stage(look: RunLook) -> str:
    return look.record.stage if look.record else ""


def test_the_scripts_are_shellcheck_clean() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed here")
    scripts = [str(script) for script in REMOTE.iterdir() if script.name.endswith(".sh")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- first contact ----------------------------------------------------------------------------------------------------


def test_first_contact_prints_facts_tools_and_checks(node: ShellNode) -> None:
    node.verb("record_check", "abc", stdin=b"sh\tfingerprint\t1.0\t\n")
    found = node.contact("sh", "no-such-tool", "ls")
    assert found.facts.system == "Linux"
    assert found.facts.uid == os.getuid()
    assert found.facts.cores >= 1
    assert found.facts.memory_bytes > 1 << 20
    assert abs(found.facts.uptime_seconds - uptime()) < 60
    assert found.facts.workdir == str(node.workdir)
    assert set(found.tools) == {"sh", "ls"}
    assert found.signatures.keys() == set(found.tools.values())
    assert found.checks == ("sh\tfingerprint\t1.0\t",)
    assert not set("[]* ?") & set(found.facts.boot_id), "it travels through login shells that would take a pattern"


def test_the_working_folder_is_private(node: ShellNode) -> None:
    folders = [node.workdir, *(path for path in node.workdir.iterdir() if path.is_dir())]
    assert len(folders) == 6
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    node.workdir.chmod(0o777)
    node.contact()
    assert node.workdir.stat().st_mode & 0o777 == 0o700


def test_run_folders_are_spread_where_the_file_system_can(node: ShellNode) -> None:
    called, place = node.folder / "called", node.folder / "other"
    chattr = node.folder / "early" / "chattr"
    chattr.parent.mkdir()
    chattr.write_text(f'#!/bin/sh\necho "$@" >>"{called}"\nexit 1\n')
    chattr.chmod(0o755)
    node.path = f"{chattr.parent}:{node.path}"
    assert node.contact(workdir=str(place)).facts.workdir == str(place)
    assert node.contact(workdir=str(place)).facts.workdir == str(place)
    assert called.read_text() == f"+T {place}/runs\n"


@pytest.mark.parametrize("slash", ["", "/", "//"])
def test_A41_a_working_folder_that_is_a_link_is_refused(node: ShellNode, slash: str) -> None:
    link = node.folder / "link"
    link.symlink_to(node.workdir)
    with pytest.raises(NodeUnfit, match="is a link"):
        node.contact(workdir=f"{link}{slash}")


@needs_root
def test_A41_a_working_folder_of_another_user_is_refused(node: ShellNode) -> None:
    theirs = node.folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(NodeUnfit, match="belongs to another user"):
        node.contact(workdir=str(theirs))
    assert list(theirs.iterdir()) == []


def test_a_working_folder_that_cannot_be_made_is_reported(node: ShellNode) -> None:
    (node.folder / "file").write_text("")
    with pytest.raises(NodeUnfit, match="cannot make the working folder"):
        node.contact(workdir=f"{node.folder}/file/below")
    with pytest.raises(NodeUnfit, match="not an absolute path"):
        node.contact(workdir="below")


def test_uid_and_home_are_replaced_in_the_name_of_the_working_folder(node: ShellNode) -> None:
    assert node.contact(workdir=f"{node.folder}/of-{{uid}}-x").facts.workdir == f"{node.folder}/of-{os.getuid()}-x"
    assert node.contact(workdir="~/deep/er").facts.workdir == f"{node.folder}/deep/er"


# --- starting ---------------------------------------------------------------------------------------------------------


def test_F12_the_same_attempt_starts_once(node: ShellNode) -> None:
    order = node.order(b'echo "$SSHGRID_JOB_ID" >>../../../ran')
    assert node.start(order) == f"claimed {order.run}"
    assert node.start(order) == f"already {order.run}"
    assert code(node.ended(order)) == 0
    assert node.start(order) == f"already {order.run}"
    assert (node.workdir / "ran").read_text() == "1\n"


def test_F5_a_late_start_does_nothing(node: ShellNode) -> None:
    order = node.order(b"echo ran")
    assert node.start(order, not_after=uptime() - 2) == f"late {order.run}"
    assert not node.dir(order).exists()


def test_missing_objects_are_named(node: ShellNode) -> None:
    order = node.order(b"cat", stdin=b"words")
    assert order.program.stdin
    source, stdin = order.recipe.layout[0][1].sha256, order.program.stdin.sha256
    for sha256 in (source, stdin):
        (node.workdir / "objects" / sha256).unlink()
    assert node.start(order) == f"missing {order.run} {source} {stdin}"
    assert not node.dir(order).exists()


def test_an_existing_build_needs_no_sources_but_the_input(node: ShellNode) -> None:
    first = node.order(b"cat", stdin=b"words")
    assert code(node.run(first)) == 0
    second = node.order(b"cat", stdin=b"other words")
    assert second.program.stdin
    for sha256 in (second.recipe.layout[0][1].sha256, second.program.stdin.sha256):
        (node.workdir / "objects" / sha256).unlink()
    assert node.start(second) == f"missing {second.run} {second.program.stdin.sha256}"


def test_a_claim_before_the_start_prevents_it(node: ShellNode) -> None:
    order = node.order(b"echo ran")
    assert node.verb("claim", order.run) == b"claimed\n"
    assert node.start(order) == f"already {order.run}"
    assert node.verb("claim", order.run) == b"already\n"
    look = node.look(order.run)
    assert (look.present, look.begun, look.why) == (True, False, "refused")


def test_a_claim_whose_folder_cannot_be_made_is_unfit(node: ShellNode) -> None:
    runs = node.workdir / "runs"
    runs.rmdir()
    assert node.verb("claim", "ab-1.1") == b"unfit\n"
    assert "unfit" in node.start(node.order(b"echo ran"))
    runs.mkdir()


def test_a_run_without_a_wrapper_can_be_blocked(node: ShellNode) -> None:
    order = node.order(b"echo ran")
    assert node.start(order, verb="prepare") == f"claimed {order.run}"
    look = node.look(order.run)
    assert (look.present, look.begun, look.alive) == (True, False, True)
    node.verb("block_start", order.run)
    assert not node.look(order.run).alive
    node.verb("launch", order.run)
    wait_until(lambda: not node.processes(order.run), "the late wrapper to leave", 5, node.processes)
    assert node.read(order, "out") == b""
    assert not node.look(order.run).record


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_an_incomplete_start_never_runs(node: ShellNode, cut: float) -> None:
    """The connection breaks while a start is being sent: the shell sees the end of its input."""
    order = node.order(b"echo ran", b"x" * 5000)
    words = f"start {order.run} {int(uptime()) + 15} {order.recipe.build_key} - {order.recipe.layout[0][1].sha256}"
    job = b"BUILD=x\n" * 200
    question = b"{ " + words.encode() + b" <<'MARK'\n" + job + b"MARK\n}\n"
    learn = f'{node.variables()}\n. "$LIB"\n'.encode()
    done = node.script(learn + question[: int(len(question) * cut)])
    assert done.stdout == b""
    assert not node.dir(order).exists()
    assert b"claimed" in node.script(learn + question).stdout


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "status"),
    [
        (b"exit 0", 0),
        (b"exit 3", 3),
        (b"exit 255", 255),
        (b"kill -SEGV $$", 139),
        (b"kill -KILL $$", 137),
        (b"kill -TERM $$", 143),
        (b"exec /nowhere/at/all", 127),
    ],
)
def test_A42_the_exit_code_is_the_program_s_own(node: ShellNode, source: bytes, status: int) -> None:
    order = node.order(source)
    look = node.run(order)
    assert (code(look), stage(look), look.why) == (status, "run", "")
    assert node.link(order, "rc").startswith(f"rc={status},stage=run,")


def test_stdout_and_stderr_are_exact_and_separate(node: ShellNode) -> None:
    content = ALL_BYTES + b"\0\0no newline at the end"
    order = node.order(b"cat; cat ../../../both >&2", stdin=content)
    (node.workdir / "both").write_bytes(content[::-1])
    look = node.run(order)
    assert code(look) == 0
    assert (node.read(order, "out"), node.read(order, "err")) == (content, content[::-1])
    assert look.sizes["out"] == len(content)


def test_A39_a_program_without_input_reads_end_of_file(node: ShellNode) -> None:
    order = node.order(b"cat; readlink /proc/self/fd/0")
    assert code(node.run(order)) == 0
    assert node.read(order, "out") == b"/dev/null\n"


def test_A9_arguments_arrive_byte_for_byte(node: ShellNode) -> None:
    args = (
        b"",
        b" ",
        b"new\nline\n",
        b"\n",
        b'it\'s "quoted" `id` $(id) $HOME ${x} \\ \\n ~ * ? [a]',
        b"-n",
        b"--",
        b"{dir}",
        b"MARK",
        b"EOF\n}\n",
        b"\xff\xfe\x80",
        b"gr\xc3\xbc\xc3\x9fe",
        ALL_BYTES,
        b"\x81\x82\x83\x84\x85\x86\x87\x88",
        b"#",
        b"!",
        b"\r\n",
        b"y" * 100_000,
    )
    show = b"import sys, os; sys.stdout.buffer.write(repr([os.fsencode(a) for a in sys.argv[1:]]).encode())"
    # As in a recipe: a word of the user that looks like the build folder has an added brace.
    words = [b"{" + word if word.startswith(b"{dir}") else word for word in args]
    order = node.order(show, run=(PYTHON, b"{dir}/p.sh", *words))
    assert code(node.run(order)) == 0, node.log(order)
    assert node.read(order, "out") == repr(list(args)).encode()


def test_A11_more_arguments_than_one_command_line_of_ssh_could_hold(node: ShellNode) -> None:
    args = tuple(b"%06d" % number + b"z" * 994 for number in range(400))
    order = node.order(b'echo "$#"; printf %s "$@" | sha256sum', *args)
    assert code(node.run(order)) == 0, node.log(order)
    expected = subprocess.run(["sha256sum"], input=b"".join(args), capture_output=True, check=True).stdout
    assert node.read(order, "out") == b"400\n" + expected


def test_the_environment_is_exact_and_cannot_change_what_the_wrapper_does(node: ShellNode) -> None:
    """The program gets variables whose names the scripts use, and the run is not affected."""
    text = (
        "W RUN DIR LIB BOOT BUILD BUILD_DIR INPUT input INTERACTIVE ISOLATION IFS status step now target pid LEASE HOME"
    )
    names = tuple(text.split(" "))
    env = dict.fromkeys(names, b"of the user " + ALL_BYTES) | {"SSHGRID_JOB_ID": b"77"}
    order = node.order(b'cat; cat </proc/self/environ >&2; echo "$0"', stdin=b"words\n", env=env)
    look = node.run(order)
    assert (code(look), stage(look)) == (0, "run"), node.log(order)
    assert node.read(order, "out") == b"words\n%s/p.sh\n" % os.fsencode(
        node.workdir / "builds" / order.recipe.build_key
    )
    seen = dict(pair.split(b"=", 1) for pair in node.read(order, "err").split(b"\0") if b"=" in pair)
    assert {name: seen.get(name.encode()) for name in names} == {name: env[name] for name in names}
    assert seen[b"SSHGRID_JOB_ID"] == str(order.attempt.job).encode()
    assert seen[b"SSHGRID_RUN"] == order.run.encode() + b"/"


def test_the_program_s_environment_has_no_variable_of_the_wrapper(node: ShellNode) -> None:
    order = node.order(b"cat /proc/self/environ")
    node.run(order)
    names = {pair.split(b"=")[0] for pair in node.read(order, "out").split(b"\0") if pair}
    ours = {b"SSHGRID_RUN", b"SSHGRID_JOB_ID", b"SSHGRID_TASK_ID", b"SSHGRID_ATTEMPT", b"SSHGRID_NODE"}
    assert names - {b"PATH", b"HOME", b"LANG", b"PWD", b"OLDPWD", b"SHLVL", b"_"} == ours


def test_a_program_has_ordinary_signals_a_folder_of_its_own_and_an_ordinary_umask(node: ShellNode) -> None:
    order = node.order(b"grep '^SigIgn' /proc/self/status; pwd; umask; ls -A")
    assert code(node.run(order)) == 0
    ignored, folder, mask = node.read(order, "out").decode().split("\n")[:3]
    # The first 31; 32 and 33 belong to glibc, and are ignored in processes that make has started.
    assert int(ignored.split()[1], 16) & 0x7FFFFFFF == 0, "no signal may be ignored, INT above all"
    assert (folder, mask) == (str(node.dir(order) / "work"), "0022")


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_a_program_can_handle_a_signal(node: ShellNode, name: str) -> None:
    order = node.order(
        b"trap 'echo got; n=1' %s; echo ready\nn=0; while [ $n = 0 ]; do sleep 0.05; done; exit 9" % name.encode()
    )
    assert node.start(order) == f"claimed {order.run}"
    node.is_running(order, "ready")
    assert node.verb("signal", order.run, name) == b"sent\n"
    look = node.ended(order)
    assert (code(look), node.read(order, "out")) == (9, b"ready\ngot\n")


def test_an_unhandled_signal_ends_the_program_with_its_code(node: ShellNode) -> None:
    for name, status in (("INT", 130), ("KILL", 137)):
        order = node.order(b"echo ready; exec sleep 1000")
        node.start(order)
        node.is_running(order, "ready")
        assert node.verb("signal", order.run, name) == b"sent\n"
        assert code(node.ended(order)) == status
        assert node.verb("signal", order.run, "INT") == b"none\n"


def test_a_missing_tool_is_the_toolchain_s_fault(node: ShellNode) -> None:
    order = node.order(b"", run=(b"/nowhere/python3", b"{dir}/p.sh"))
    assert node.run(order).why == "toolchain"


# --- building ---------------------------------------------------------------------------------------------------------

COMPILE = (("/bin/sh", "-c", "echo said; echo 'echo built' >exe; chmod +x exe; echo once >>../../compilations"),)


def builds(node: ShellNode) -> list[str]:
    return [path.name for path in (node.workdir / "builds").iterdir() if path.is_dir()]


def test_a_program_is_compiled_once(node: ShellNode) -> None:
    orders = [node.order(b"", compiler=COMPILE, run=(b"/bin/sh", b"{dir}/exe")) for _ in range(2)]
    looks = [node.run(order) for order in orders]
    assert [code(look) for look in looks] == [0, 0]
    assert [look.compiled for look in looks] == [True, False]
    assert [node.read(order, "out") for order in orders] == [b"built\n"] * 2
    assert node.read(orders[0], "build.log").rstrip(b" ") == b"said\n"
    assert (node.workdir / "compilations").read_text() == "once\n"


def test_F37_the_times_of_sources_are_those_of_the_node_s_clock(node: ShellNode) -> None:
    """Otherwise make would print "Clock skew detected", and build again each time."""
    source = b"echo dated"
    order = node.order(source)
    an_hour_on = time.time() + 3600
    os.utime(node.workdir / "objects" / hashlib.sha256(source).hexdigest(), (an_hour_on, an_hour_on))
    began = time.time()
    node.run(order)
    placed = node.workdir / "builds" / order.recipe.build_key / "p.sh"
    assert began - 1 <= placed.stat().st_mtime <= time.time()


def test_a_failed_build_is_recorded_with_the_compiler_s_output_and_leaves_no_build(node: ShellNode) -> None:
    order = node.order(b"", compiler=(("/bin/sh", "-c", "echo 'p.c:1: error' >&2; exit 4"),), run=(b"{dir}/exe",))
    look = node.run(order)
    assert (code(look), stage(look), look.running) == (4, "build", False)
    assert node.read(order, "build.log").rstrip(b" ") == b"p.c:1: error\n"
    assert builds(node) == []


def test_two_runs_may_build_the_same_at_once(node: ShellNode) -> None:
    wait = "echo x >>../../arrived; until [ $(wc -l <../../arrived) = 2 ]; do sleep 0.01; done; echo 'ls -A ..' >exe"
    source = b"ls -A ../../../builds/*/"
    orders = [
        node.order(source, compiler=(("/bin/sh", "-c", wait),), run=(b"/bin/sh", b"{dir}/p.sh")) for _ in range(2)
    ]
    for order in orders:
        node.start(order)
    for order in orders:
        assert code(node.ended(order)) == 0
        assert node.read(order, "out") == b"exe\np.sh\n"
    assert builds(node) == [orders[0].recipe.build_key]


def test_a_build_folder_that_cannot_be_filled_is_not_the_program_s_fault(node: ShellNode) -> None:
    order = node.order(b"echo ran")
    assert node.start(order, verb="prepare") == f"claimed {order.run}"
    (node.workdir / "objects" / order.recipe.layout[0][1].sha256).unlink()
    node.verb("launch", order.run)
    look = node.ended(order)
    assert (code(look), stage(look), look.running) == (74, "layout", False)


def test_a_missing_input_is_not_the_program_s_exit_code(node: ShellNode) -> None:
    order = node.order(b"cat", stdin=b"words")
    assert order.program.stdin
    assert node.start(order, verb="prepare") == f"claimed {order.run}"
    (node.workdir / "objects" / order.program.stdin.sha256).unlink()
    node.verb("launch", order.run)
    assert stage(node.ended(order)) == "start"


def test_a_namespace_that_fails_is_not_the_program_s_exit_code(node_of: Callable[..., ShellNode]) -> None:
    node = node_of("dash-pidns")
    refusing = node.folder / "refusing"
    refusing.mkdir()
    (refusing / "unshare").write_text("#!/bin/sh\necho 'unshare: No space left on device' >&2\nexit 1\n")
    (refusing / "unshare").chmod(0o755)
    node.path = f"{refusing}:{node.path}"
    plain = node.run(node.order(b"echo ran"))
    assert (code(plain), stage(plain)) == (1, "start")
    compiled = node.run(node.order(b"", compiler=COMPILE, run=(b"{dir}/exe",)))
    assert (code(compiled), stage(compiled)) == (1, "layout")


# --- queries ----------------------------------------------------------------------------------------------------------


def test_poll_reports_a_run_that_does_not_exist(node: ShellNode) -> None:
    look = node.look(f"{node.grid}-99.1")
    assert (look.present, look.alive, look.record) == (False, False, None)


def test_one_poll_reports_many_runs(node: ShellNode) -> None:
    ended, running = node.order(b"echo words; exit 5"), node.order(b"echo ready; exec sleep 1000")
    node.run(ended)
    node.start(running)
    node.is_running(running, "ready")
    from sshgrid.ssh.parsers import parse_poll

    looks = parse_poll(node.verb("poll", ended.run, running.run, "ff-1.1"), [ended.run, running.run, "ff-1.1"])
    assert code(looks[ended.run]) == 5
    assert looks[ended.run].sizes == {"out": 6, "err": 0}
    assert (looks[running.run].alive, looks[running.run].running, looks[running.run].begun) == (True, True, True)
    assert looks[running.run].record is None
    assert not looks["ff-1.1"].present


def test_output_is_read_by_offset(node: ShellNode) -> None:
    order = node.order(b"cat", stdin=ALL_BYTES * 1000)
    node.run(order)
    content = ALL_BYTES * 1000
    for offset, count in ((0, 10), (1, 255), (100_001, 50_000), (254_990, 1000), (255_000, 10)):
        assert node.verb("read_piece", f"{order.run}/out", str(offset), str(count)) == content[offset : offset + count]


def test_usage_is_recorded(node: ShellNode) -> None:
    order = node.order(b"i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done")
    look = node.run(order)
    assert look.record
    assert look.record.cpu_seconds
    assert look.record.cpu_seconds > 0
    assert uptime() - 60 < look.record.began_uptime <= look.record.ended_uptime <= uptime()


def test_the_starter_is_notified_when_a_run_starts_and_ends(node: ShellNode) -> None:
    order = node.order(b"echo words")
    script = f'{node.variables()}\n. "$LIB"\nexec 9>&1\nlaunch {order.run}\n'
    assert node.start(order, verb="prepare") == f"claimed {order.run}"
    # The shell's output ends when the wrapper, too, has closed it.
    assert node.script(script.encode()).stdout == f"running {order.run}\nend {order.run}\n".encode()


def test_a_run_ignores_a_dead_connection_that_it_notifies(node: ShellNode) -> None:
    order = node.order(b"echo words")
    node.start(order, verb="prepare")
    script = f'{node.variables()}. "$LIB"; exec 9>&1; sleep 0.05; launch {order.run}'
    with subprocess.Popen([node.sh, "-c", script], stdout=subprocess.PIPE, env={"PATH": node.path}) as shell:
        assert shell.stdout
        shell.stdout.close()
    assert code(node.ended(order)) == 0
    assert node.read(order, "out") == b"words\n"


def test_sample_load_prints_a_sample_a_second(node: ShellNode) -> None:
    with subprocess.Popen(
        [node.sh, "-c", node.variables() + '. "$LIB"; sample_load'], stdout=subprocess.PIPE, env={"PATH": node.path}
    ) as shell:
        assert shell.stdout
        meter = LoadMeter(2)
        samples = [meter.read(shell.stdout.readline(), at) for at in (1.0, 2.0)]
        shell.kill()
    first, second = samples
    assert first
    assert second
    assert first.busy_cores is None
    assert second.busy_cores is not None
    assert 0 <= second.busy_cores <= 2
    assert second.memory_free_bytes > 1 << 20
    assert 0.5 < second.uptime_seconds - first.uptime_seconds < 30


# --- files of the node ------------------------------------------------------------------------------------------------


def test_F25_an_upload_counts_only_when_size_and_digest_are_right(node: ShellNode) -> None:
    content = b"0123456789"
    sha256 = hashlib.sha256(content).hexdigest()
    part = node.workdir / "objects" / "abc.part"
    assert node.verb("missing_objects", sha256) == f"{sha256}\n".encode()
    part.write_bytes(content[:5])
    assert node.verb("store_object", "abc.part", sha256, "10") == b"short 5\n"
    part.write_bytes(content[::-1])
    assert node.verb("store_object", "abc.part", sha256, "10") == b"corrupt\n"
    assert list(part.parent.iterdir()) == []
    part.write_bytes(content)
    assert node.verb("store_object", "abc.part", sha256, "10") == b"kept\n"
    assert node.verb("missing_objects", sha256) == b""
    part.write_bytes(content)
    node.verb("remove_part", "abc.part")
    assert [path.name for path in part.parent.iterdir()] == [sha256]


def test_runs_of_another_grid_are_not_listed(node: ShellNode) -> None:
    for run in (f"{node.grid}-1.1", f"{node.grid}-2.3", "0-1.1"):
        (node.workdir / "runs" / run).mkdir()
    assert node.verb("runs_of", node.grid).decode().split() == [f"{node.grid}-1.1", f"{node.grid}-2.3"]
    node.verb("clean", "0-1.1")


def test_clean_removes_files_without_permissions(node: ShellNode) -> None:
    order = node.order(b"mkdir -p a/b/c; echo x >a/b/c/d; chmod 0 a/b/c a/b; chmod 500 a; ln -s / root; mkfifo p")
    assert code(node.run(order)) == 0
    assert node.verb("clean", order.run) == b""
    assert not node.dir(order).exists()
    assert Path("/etc").exists()
    assert node.verb("clean", order.run) == b"", "asking twice is fine"


# --- receiving --------------------------------------------------------------------------------------------------------


def test_a_receiver_that_is_killed_leaves_no_process(node: ShellNode) -> None:
    sha256 = hashlib.sha256(b"never whole").hexdigest()
    paths = [str(path) for path in (node.sh, node.library, node.workdir)]
    words = [*paths[:2], "receive_object", paths[2], sha256, node.facts.boot_id, "60000000", "nonce"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env={"PATH": node.path}) as receiver:
        assert receiver.stdin
        part = node.workdir / "objects" / f"{sha256}.part"
        wait_until(
            lambda: part.exists() and len(receiving(sha256)) > 1, "it to be received", seen=lambda: receiving(sha256)
        )
        os.kill(receiver.pid, signal.SIGKILL)
    wait_until(lambda: not receiving(sha256), "nobody to be left", seen=lambda: receiving(sha256))


def receiving(sha256: str) -> list[int]:
    """Return the processes that receive this object."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if is_alive(pid) and sha256 in " ".join(argv_of(pid))]
