"""Builds that nodes share, on real hosts, with a compiler that records its calls and that tests can block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.lab.host import LabHost
from tests.lab.hosts import Lab
from tests.whole.grid import CommandResult, Grid, RunningCommand, wait_for_value, wait_until

pytestmark = pytest.mark.lab

TOOL = "/home/grid/.local/bin/lgcc"
# Records what it compiles, and waits while /tmp/hold exists. If /home/grid/ld.so exists, programs use it as their
# loader and start on no other host.
LGCC = """#!/bin/sh
echo "$*" >>/home/grid/ledger
case $* in *--version*) ;; *) while [ -e /tmp/hold ]; do sleep 0.05; done ;; esac
[ ! -e /home/grid/ld.so ] || set -- "$@" -Wl,--dynamic-linker=/home/grid/ld.so
exec gcc "$@"
"""
OWN_LOADER = "for at in /lib64/ld-linux-*.so.* /lib/ld-linux-*.so.*; do [ ! -e $at ] || cp $at /home/grid/ld.so; done"
ROW = "toolchains: {c: {compile: [lgcc, -O2, '{flags}', -o, '{exe}', '{srcs}', -lm], probe: [lgcc, --version]}}"
HOSTS = ("h1", "h2", "h3", "h4")
PROGRAM = '#include <stdio.h>\nint main(int n, char **a) { printf("%s %d\\n", a[1], NUMBER); return n - 2; }\n'


def install_compiler(host: LabHost, text: str = LGCC) -> None:
    """Install the compiler with the same content and time on each host, as a package does."""
    script = f"mkdir -p {TOOL.rpartition('/')[0]} && cat >{TOOL}.new && chmod 755 {TOOL}.new"
    script += f" && touch -d 2020-01-01T12:00:00 {TOOL}.new && mv {TOOL}.new {TOOL}"
    host.run(["sh", "-c", script], user="grid", stdin=text)


@pytest.fixture(scope="module", autouse=True)
def compiler_in_inventory(module_grid: Grid) -> Iterator[None]:
    module_grid.write_inventory(ROW)
    yield
    for host in module_grid.lab:
        host.run(["rm", "-f", TOOL, "/home/grid/ledger", "/home/grid/ld.so", "/tmp/hold"])


@pytest.fixture(autouse=True)
def proved_compilers(grid: Grid, hosts: Lab, compiler_in_inventory: None) -> None:
    """Install the compiler where it is missing (/home is lost at a reboot), and run one program on each host."""
    for host in hosts:
        host.run(["rm", "-f", "/tmp/hold"])
        if host.run(["cat", TOOL], check=False).stdout != LGCC:
            install_compiler(host)
            host.reset_sessions()
    grid.wait_until_up(*HOSTS)
    grid.write("first.c", PROGRAM.replace("NUMBER", "0"))
    for name in HOSTS:
        assert grid("run", "--on", name, "first.c", "x").code == 0


def hold_compilers(lab: Lab, *names: str) -> None:
    for name in names or HOSTS:
        lab[name].run(["touch", "/tmp/hold"])


def release_compilers(lab: Lab) -> None:
    for host in lab:
        if host.is_on:
            host.run(["rm", "-f", "/tmp/hold"])


def compilations(lab: Lab, source: str) -> dict[str, int]:
    """How often each host has compiled this file."""
    ledgers = {host.name: host.run(["cat", "/home/grid/ledger"], check=False).stdout for host in lab if host.is_on}
    found = {name: sum(source in line for line in ledger.splitlines()) for name, ledger in ledgers.items()}
    return {name: count for name, count in found.items() if count}


def start_on(grid: Grid, stack: ExitStack, source: str, *names: str) -> dict[str, RunningCommand]:
    """Start the same program on these hosts, and wait until each is in the phase `compiling`."""
    clients = {name: stack.enter_context(grid.start("run", "--on", f"{name},{name}", source, name)) for name in names}
    wait_for_value(
        lambda: [job["phase"] for job in grid("--json", "ps").json["jobs"]],
        lambda phases: phases.count("compiling") == len(names),
        "all jobs to compile",
    )
    return clients


def attempts(grid: Grid, count: int) -> list[dict[str, Any]]:
    """The last attempt of each of the last `count` jobs."""
    jobs = grid("--json", "ps", "-a").json["jobs"][-count:]
    return [grid.info(job["id"])["attempts"][-1] for job in jobs]


def test_a_program_that_starts_on_four_hosts_at_once_is_compiled_once(grid: Grid, hosts: Lab) -> None:
    grid.write("once.c", PROGRAM.replace("NUMBER", "1"))
    hold_compilers(hosts)
    with ExitStack() as stack:
        clients = start_on(grid, stack, "once.c", *HOSTS)
        wait_until(lambda: compilations(hosts, "once.c"), "a compiler to begin")
        release_compilers(hosts)
        ends = {name: client.result() for name, client in clients.items()}
    assert ends == {name: CommandResult(0, f"{name} 1\n".encode(), "") for name in HOSTS}
    assert sum(compilations(hosts, "once.c").values()) == 1
    last = attempts(grid, 4)
    assert sorted(attempt["compiled"] for attempt in last) == [False, False, False, True]
    assert all(attempt["uploaded_bytes"] > 10_000 for attempt in last if not attempt["compiled"])
    assert all(attempt["uploaded_bytes"] < 1_000 for attempt in last if attempt["compiled"])


def test_a_second_host_uses_the_build_of_the_first(grid: Grid, hosts: Lab) -> None:
    grid.write("later.c", PROGRAM.replace("NUMBER", "2"))
    assert grid("run", "--on", "h1", "later.c", "x").out == b"x 2\n"
    assert grid("run", "--on", "h2", "later.c", "y") == (0, b"y 2\n", "")
    assert grid.last_job()["attempts"][0]["compiled"] is False
    assert compilations(hosts, "later.c") == {"h1": 1}
    # A changed file is another program.
    grid.write("later.c", PROGRAM.replace("NUMBER", "22"))
    assert grid("run", "--on", "h2", "later.c", "y").out == b"y 22\n"
    assert compilations(hosts, "later.c") == {"h1": 1, "h2": 1}


def test_a_compile_error_ends_four_waiting_runs_after_one_compilation(grid: Grid, hosts: Lab) -> None:
    grid.write("wrong.c", "int main(void) { return nothing; }\n")
    hold_compilers(hosts)
    with ExitStack() as stack:
        clients = start_on(grid, stack, "wrong.c", *HOSTS)
        wait_until(lambda: compilations(hosts, "wrong.c"), "a compiler to begin")
        release_compilers(hosts)
        ends = [client.result() for client in clients.values()]
    assert {end.code for end in ends} == {ends[0].code} != {0}
    assert all("wrong.c:1" in end.err and "nothing" in end.err for end in ends), ends
    assert sum(compilations(hosts, "wrong.c").values()) == 1
    assert grid("run", "--on", "h2", "wrong.c").code == ends[0].code
    assert sum(compilations(hosts, "wrong.c").values()) == 2, "a failed compilation is not kept"


def test_when_the_compiling_host_loses_power_another_one_compiles(grid: Grid, hosts: Lab) -> None:
    grid.write("lost.c", PROGRAM.replace("NUMBER", "3"))
    hold_compilers(hosts)
    with ExitStack() as stack:
        clients = {
            n: stack.enter_context(grid.start("run", "lost.c", f"job{n}")) for n in range(4)
        }  # on any node: the job of the lost one must move
        wait_for_value(
            lambda: [job["phase"] for job in grid("--json", "ps").json["jobs"]],
            lambda phases: phases.count("compiling") == 4,
            "all jobs to compile",
        )
        builder = next(iter(wait_for_value(lambda: compilations(hosts, "lost.c"), bool, "a compiler to begin")))
        hosts[builder].power_off()
        release_compilers(hosts)
        ends = [client.result(60) for client in clients.values()]
    assert [(end.code, end.out) for end in ends] == [(0, f"job{n} 3\n".encode()) for n in range(4)], ends
    assert sum(compilations(hosts, "lost.c").values()) == 1, "compiled once more, on another host"


def test_a_host_with_a_different_compiler_compiles_for_itself(grid: Grid, hosts: Lab) -> None:
    install_compiler(hosts["h4"], LGCC + "# of another package\n")
    hosts["h4"].reset_sessions()
    grid.wait_until_up("h4")
    grid.write("unlike.c", PROGRAM.replace("NUMBER", "4"))
    for name in HOSTS:
        assert grid("run", "--on", name, "unlike.c", "x").out == b"x 4\n"
    assert compilations(hosts, "unlike.c") == {"h1": 1, "h4": 1}


@pytest.mark.parametrize("flag", ["-march=native", "-I/usr/include", "-lrt -lcrypt"])
def test_a_build_with_machine_dependent_flags_is_not_shared(grid: Grid, hosts: Lab, flag: str) -> None:
    name = f"own{abs(hash(flag)) % 1000}.c"
    grid.write(name, PROGRAM.replace("NUMBER", "5"))
    for host in ("h1", "h2"):
        assert grid("run", "--on", host, "--flags", flag, name, "x").out == b"x 5\n"
    assert compilations(hosts, name) == {"h1": 1, "h2": 1}


def test_a_node_with_shared_builds_false_compiles_for_itself(grid: Grid, hosts: Lab) -> None:
    grid.write("out.c", PROGRAM.replace("NUMBER", "6"))
    before = grid.inventory.read_text()
    try:
        grid.write_inventory(ROW, fields={"h2": {"shared_builds": False}})
        wait_until(lambda: "shared_builds" in grid("inventory", "show").text, "the master to use the new inventory")
        for host in ("h1", "h2", "h3"):
            assert grid("run", "--on", host, "out.c", "x").out == b"x 6\n"
        assert compilations(hosts, "out.c") == {"h1": 1, "h2": 1}
    finally:
        grid.inventory.write_text(before)


def test_verify_build_compiles_again_where_the_smoke_test_fails(grid: Grid, hosts: Lab) -> None:
    hosts["h1"].run(["sh", "-c", OWN_LOADER], user="grid")
    grid.write("foreign.c", PROGRAM.replace("NUMBER", "7"))
    assert grid("run", "--on", "h1", "foreign.c", "x").out == b"x 7\n"
    assert grid("run", "--on", "h2", "foreign.c", "x").code == 127, "its loader is missing"
    for name in ("h1", "h2", "h3"):
        done = grid("run", "--verify-build", "--on", name, "foreign.c", name)
        assert (done.code, done.out) == (0, f"{name} 7\n".encode())
        refused = f"the c smoke test of h1, which built it, fails on {name}"
        assert done.err == ("" if name == "h1" else f"{name} compiled the program itself: {refused}\n")
        assert grid.last_job()["attempts"][0]["why_compiled"] == ("" if name == "h1" else refused)
    assert compilations(hosts, "foreign.c") == {"h1": 2, "h2": 1, "h3": 1}
    hosts["h1"].run(["rm", "/home/grid/ld.so"])


def test_verify_build_uses_a_build_that_passes_and_runs_the_smoke_test_once(grid: Grid, hosts: Lab) -> None:
    # Each node has checked its compiler by now. A host that lost its power has lost its ledger, and may have kept the
    # record of its check.
    before = compilations(hosts, "hello.c")
    for number in (1, 2):
        grid.write("sound.c", PROGRAM.replace("NUMBER", f"8{number}"))
        assert grid("run", "--verify-build", "--on", "h3", "sound.c", "x").out == f"x 8{number}\n".encode()
        done = grid("sweep", "--verify-build", "--on", "h4", "-p", "x=a,b", "-k", "sound.c")
        assert done == (0, f"a 8{number}\nb 8{number}\n".encode(), "")
    assert compilations(hosts, "sound.c") == {"h3": 2}
    after = compilations(hosts, "hello.c")
    assert (after["h3"], after.get("h4", 0)) == (before.get("h3", 0) + 1, before.get("h4", 0))
