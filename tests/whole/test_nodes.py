"""The choice of the node for a run, and changes of the inventory while the master runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab.hosts import Lab
from tests.whole.grid import Grid, wait_for_value

pytestmark = pytest.mark.lab

PRINT_NODE = "import os\nprint(os.uname().nodename)\n"


def wait_for_load(grid: Grid, **loads: float) -> dict[str, Any]:
    """Wait until the master has these loads and a CPU use for each node."""
    return wait_for_value(
        grid.nodes,
        lambda nodes: all(
            nodes[name]["load"] == load and nodes[name]["cpu"] is not None for name, load in loads.items()
        ),
        f"loads {loads}",
    )


def nodes_of(grid: Grid, times: int, *options: str) -> list[str]:
    """The nodes of `times` runs, checked against the host name that the program prints."""
    grid.write("node.py", PRINT_NODE)
    found = []
    for _ in range(times):
        done = grid("--json", "run", "--show-node", *options, "node.py")
        assert done.code == 0, done
        job = done.lines[-1]
        # One line can arrive in several events.
        output = "".join(event["text"] for event in done.lines if event.get("event") == "output")
        assert output.strip() == job["node"]
        found.append(job["node"])
    return found


def test_all_runs_go_to_the_idle_host(grid: Grid, hosts: Lab) -> None:
    grid.wait_until_up()
    hosts["h1"].set_load(9.0, 0.3)
    hosts["h3"].set_load(6.0, 1.5)
    hosts["h4"].set_load(6.0, 1.5)
    wait_for_load(grid, h1=9.0, h2=0.0, h3=6.0, h4=6.0)
    assert nodes_of(grid, 10) == ["h2"] * 10
    assert nodes_of(grid, 5, "--on", "h1,h2") == ["h2"] * 5


def test_on_limits_runs_to_the_selected_nodes(grid: Grid) -> None:
    assert nodes_of(grid, 3, "--on", "h3") == ["h3"] * 3
    assert set(nodes_of(grid, 6, "--on", "h[1-2]")) <= {"h1", "h2"}
    assert set(nodes_of(grid, 6, "--on", "!h1,!h2,!h3")) == {"h4"}


def test_a_node_over_its_max_load_starts_no_run(grid: Grid, hosts: Lab) -> None:
    grid.write_inventory(fields={"h1": {"max_load": 0.5}})
    try:
        grid.wait_until_up()
        hosts["h1"].set_load(9.0, 2.0)
        wait_for_load(grid, h1=9.0)
        grid.write("node.py", PRINT_NODE)
        job = grid.detach("--on", "h1", "node.py")
        info = grid.info(job)
        assert (info["state"], info["reason"]) == ("PENDING", "LoadTooHigh")
        hosts["h1"].set_load(0.0, 0.0)
        assert grid("wait", "--timeout", "20s", job).code == 0
    finally:
        grid.write_inventory()


def test_a_second_run_of_an_unchanged_c_file_sends_nothing_and_compiles_nothing(grid: Grid) -> None:
    grid.write("once.c", '#include <stdio.h>\nint main(int n, char **w) { printf("%s", w[1]); }\n')
    first, second = [grid.last_job() for word in "xy" if grid("run", "--on", "h2", "once.c", word).text == word]
    assert [each["attempts"][0]["compiled"] for each in (first, second)] == [True, False]
    assert first["attempts"][0]["uploaded_bytes"] > 0
    assert second["attempts"][0]["uploaded_bytes"] == 0
    grid.write("once.c", '#include <stdio.h>\nint main(int n, char **w) { printf("%s!", w[1]); }\n')
    assert grid("run", "--on", "h2", "once.c", "z").text == "z!"
    assert grid.last_job()["attempts"][0]["compiled"] is True


def test_a_second_run_of_an_unchanged_java_file_sends_nothing_and_compiles_nothing(grid: Grid) -> None:
    grid.write("Once.java", "class Once { public static void main(String[] a) { System.out.print(a[0]); } }")
    first, second = [grid.last_job() for word in "xy" if grid("run", "--on", "h2", "Once.java", word).text == word]
    assert [each["attempts"][0]["compiled"] for each in (first, second)] == [True, False]
    assert second["attempts"][0]["uploaded_bytes"] == 0


def test_a_second_run_of_a_python_file_sends_nothing(grid: Grid) -> None:
    grid.write("once.py", "print(1)\n" + "# what makes it larger\n" * 100)
    sent = [
        grid.last_job()["attempts"][0]["uploaded_bytes"] for _ in "xy" if grid("run", "--on", "h2", "once.py").code == 0
    ]
    assert sent[0] > 2000
    assert sent[1] == 0


def test_other_flags_compile_the_program_again(grid: Grid) -> None:
    grid.write("flag.c", "#include <stdio.h>\nint main(void) { puts(WORD); }\n")
    assert grid("run", "--on", "h2", "--flags", "-DWORD='\"one two\"'", "flag.c").text == "one two\n"
    assert grid("run", "--on", "h2", "--flags", "-DWORD='\"three\"'", "flag.c").text == "three\n"


def test_a_host_without_java_gets_no_java_program(grid: Grid, hosts: Lab) -> None:
    host = hosts["h1"]
    try:
        host.hide("java", "javac")
        host.reset_sessions()
        grid.wait_until_up()
        wait_for_value(grid.nodes, lambda nodes: "java" not in nodes["h1"]["toolchains"], "h1 to be without java")
        grid.wait_for_toolchain("java", "h2")
        for name in ("h2", "h3", "h4"):
            hosts[name].set_load(5.0, 1.9)
        wait_for_load(grid, h2=5.0, h3=5.0, h4=5.0)
        grid.write("A.java", "class A { public static void main(String[] a) { System.out.print(a[0]); } }")
        for word in "abc":
            assert grid("run", "A.java", word).text == word
            assert grid.last_job()["node"] != "h1"
        assert nodes_of(grid, 1) == ["h1"]
        done = grid("run", "--on", "h1", "A.java", "x")
        assert done.code == 127, done
        assert "java" in done.err
        listed = {line["language"]: line for line in grid("--json", "toolchains").json["toolchains"]}
        assert "h1" not in [each["node"] for each in listed["java"]["nodes"]]
    finally:
        host.reset()


# --- the inventory changes while the master runs ----------------------------------------------------------------------

COMMENTED = """# our machines
version: 1   # the schema's

nodes:
  # the fast one
{h1}
  # the other one
{h2}
  # nothing below
placement: least-loaded   # as ever
defaults: {defaults}
"""


def inventory_text_of(lab: Lab, name: str) -> str:
    """The lines of one node in the inventory of the lab."""
    return lab.inventory_yaml(hosts=[name]).split("nodes:\n")[1].rstrip("\n")


def test_nodes_are_added_drained_resumed_and_removed_while_the_master_runs(grid: Grid, lab: Lab) -> None:
    before = grid.inventory.read_text()
    defaults = json.dumps({
        "toolchains": ["python"], "user": "grid", "identity_file": str(lab.identity_file),
        "known_hosts": str(lab.known_hosts),
    })  # fmt: skip
    text = COMMENTED.format(h1=inventory_text_of(lab, "h1"), h2=inventory_text_of(lab, "h2"), defaults=defaults)
    try:
        grid.inventory.write_text(text)
        pid = grid.master_pid()
        wait_for_value(grid.nodes, lambda nodes: set(nodes) == {"h1", "h2"}, "two nodes")
        added = grid("--json", "node", "add", "late", f"grid@{lab['h3'].address}:22", "--tag", "new", "--slots", "3")
        assert added.code == 0, added
        (line,) = added.json["nodes"]
        assert (line["name"], line["slots"], line["toolchains"]) == ("late", 3, ["python"])
        grid.write("node.py", PRINT_NODE)
        assert grid("run", "--on", "@new", "node.py").text == "h3\n"

        assert grid("node", "drain", "late").code == 0
        assert grid.nodes()["late"]["state"] == "DRAINED"
        job = grid.detach("--on", "late", "node.py")
        assert grid.info(job)["state"] == "PENDING"
        assert grid("node", "resume", "late").code == 0
        assert grid("wait", "--timeout", "20s", job).code == 0
        assert grid("node", "rm", "late").code == 0
        wait_for_value(grid.nodes, lambda nodes: set(nodes) == {"h1", "h2"}, "two nodes again")
        assert grid.inventory.read_text() == text
        assert grid("node", "drain", "h1").code == 0
        assert grid("node", "resume", "h1").code == 0
        assert "# the fast one" in grid.inventory.read_text()
        assert grid.master_pid() == pid
    finally:
        grid.inventory.write_text(before)
        grid.wait_until_up("h1", "h2", "h3", "h4")


def test_an_invalid_inventory_is_reported_and_the_last_valid_one_stays_in_use(grid: Grid) -> None:
    before = grid.inventory.read_text()
    try:
        grid.inventory.write_text(before.replace("host:", "hots:", 1))
        broken = grid("inventory", "check")
        assert broken.code == 1
        assert "inventory.yaml:4:5" in broken.err
        assert "did you mean 'host'" in broken.err
        status = wait_for_value(
            lambda: grid("--json", "master", "status").json,
            lambda found: found["inventory_error"],
            "the error in the status",
        )
        assert "hots" in status["inventory_error"]
        assert nodes_of(grid, 1, "--on", "h1") == ["h1"]
    finally:
        grid.inventory.write_text(before)
    wait_for_value(
        lambda: grid("--json", "master", "status").json,
        lambda found: not found["inventory_error"],
        "no error in the status",
    )


def test_A20_an_unknown_host_key_is_refused_until_accept_new(grid: Grid, lab: Lab) -> None:
    before = grid.inventory.read_text()
    fields = {"toolchains": ["python"], "user": "grid", "identity_file": str(lab.identity_file)}
    one = f"version: 1\ndefaults: {json.dumps(fields)}\nnodes:\n  h1: {{host: {lab['h1'].address}}}\n"
    known_hosts = grid.home / "known_hosts"
    try:
        grid.inventory.write_text(one)
        wait_for_value(grid.nodes, lambda nodes: set(nodes) == {"h1"}, "one node")
        grid.write("node.py", PRINT_NODE)
        done = grid("run", "node.py")
        assert done.code == 125
        assert "unknown host key SHA256:" in done.err
        added = grid("--no-input", "node", "add", "h2", f"grid@{lab['h2'].address}")
        assert added.code == 1
        assert "unknown host key SHA256:" in added.err
        assert "--accept-new" in added.err
        assert not known_hosts.exists()
        assert grid("node", "check", "--accept-new").code == 0
        assert lab["h1"].known_host in known_hosts.read_text()
        assert nodes_of(grid, 1, "--on", "h1") == ["h1"]
    finally:
        grid.inventory.write_text(before)
        known_hosts.unlink(missing_ok=True)
        grid.wait_until_up("h1", "h2", "h3", "h4")
