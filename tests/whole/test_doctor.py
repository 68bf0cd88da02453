"""`doctor` on real hosts: it finds faults that the tests create, and prints a hint for each."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.hosts import Lab
from tests.whole.grid import LANGUAGES, Grid, wait_for_value

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", autouse=True)
def short_connect_timeout(module_grid: Grid) -> None:
    """Give up a connection to h3 after 2 seconds, not 10: one test powers it off."""
    module_grid.write_inventory(fields={"h3": {"connect_timeout": "2s"}})


def run_doctor(grid: Grid, *words: str, code: int = 0) -> dict[str, Any]:
    done = grid("--json", "doctor", *words)
    assert done.code == code, done
    assert done.json["ok"] == (code == 0)
    return {each["name"]: each for each in done.json["checks"]}


def checks_by_name(grid: Grid) -> dict[str, Any]:
    return {each["name"]: each for each in grid("--json", "doctor").json["checks"]}


def test_a_healthy_grid_passes_and_a_named_node_is_checked_in_detail(grid: Grid, lab: Lab) -> None:
    grid.wait_until_up()
    assert {"inventory", "state_dir", "disk", "master", "node h1", "node h4"} <= run_doctor(grid).keys()
    found = run_doctor(grid, "h2")
    assert {
        f"node h2: {name}" for name in ("clock", "space", "SFTP", "isolation", "limit of processes")
    } <= found.keys()
    assert "OpenSSH" in found["node h2: connection"]["detail"]
    assert "host key SHA256:" in found["node h2: connection"]["detail"]
    isolation = found["node h2: isolation"]
    assert isolation["detail"].startswith(("pidns", "session"))
    assert isolation["detail"].startswith("pidns") or isolation["hint"]
    assert not any(name.startswith("node h1") for name in found)


def test_a_path_that_only_the_login_shell_has_is_found_despite_a_noisy_bashrc(grid: Grid, hosts: Lab) -> None:
    hosts["h2"].run(["sh", "-c", "echo 'echo hello; PATH=$PATH:/opt/only/here; read x' >/home/grid/.profile"])
    hosts["h2"].set_bashrc("echo noise\n")
    finding = run_doctor(grid, "h2")["node h2: PATH"]
    assert "/opt/only/here" in finding["detail"]
    assert finding["hint"]
    hosts["h2"].run(["rm", "/home/grid/.profile"])


def test_a_small_disk_and_an_unreachable_host_fail_the_check(grid: Grid, hosts: Lab) -> None:
    host = hosts["h3"]
    grid.take_down(host)
    host.small_disk(50 << 20)
    grid.wait_until_up("h3")
    try:
        finding = wait_for_value(
            lambda: checks_by_name(grid), lambda found: "node h3: space" in found, "h3 to report too little space"
        )["node h3: space"]
        assert not finding["ok"]
        assert "/var/tmp/sshgrid-2001" in finding["detail"]
        assert "df /var/tmp/sshgrid-2001" in finding["hint"]
        text = grid("doctor", "h3")
        assert text.code == 1
        assert "FAILED" in text.text
        grid.take_down(host)
        host.power_off()
        assert run_doctor(grid, "h3", code=1)["node h3"]["hint"] == "sshgrid node check h3"
    finally:
        host.reset()
        grid.wait_until_up("h3")
        # A toolchain check that runs when the master stops would leave its folder on the host.
        for language in LANGUAGES:
            grid.wait_for_toolchain(language, "h3")
