"""`inventory edit` and `inventory import`: the changed file and the printed messages."""

from __future__ import annotations

import json
from pathlib import Path

from sshgrid.protocol import messages
from tests.service.conftest import INVENTORY, Cli
from tests.service.fake_master import FakeMaster


def editor(cli: Cli, script: str) -> str:
    """An editor that runs this script with the file as $1."""
    path = cli.folder / "editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def kept(cli: Cli) -> list[Path]:
    return sorted(cli.home.glob("*.edited"))


def test_a_valid_edit_replaces_the_file_and_reloads_the_master(cli: Cli, fake: FakeMaster) -> None:
    path = cli.home / "inventory.yaml"
    path.chmod(0o640)
    done = cli("inventory", "edit", EDITOR=editor(cli, "echo '  h3: {}  # new' >>\"$1\""))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"{path.resolve()}: changed\n"
    assert path.read_text() == INVENTORY + "  h3: {}  # new\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert len(fake.received(messages.Reload)) == 1


def test_visual_overrides_editor_and_an_unchanged_file_is_reported(cli: Cli, fake: FakeMaster) -> None:
    argv = editor(cli, '[ "$1" = --wait ]') + " --wait"
    done = cli("--json", "inventory", "edit", VISUAL=argv, EDITOR="false")
    assert (done.returncode, json.loads(done.stdout)["changed"]) == (0, False)
    assert not fake.received(messages.Reload)


def test_errors_are_printed_and_the_edited_text_is_saved(cli: Cli) -> None:
    done = cli("inventory", "edit", EDITOR=editor(cli, "echo '  h3: {hots: x}' >>\"$1\""))
    assert done.returncode == 125
    assert b"inventory.yaml:4:8: unknown key 'hots'; did you mean 'host'?" in done.stderr
    assert (cli.home / "inventory.yaml").read_text() == INVENTORY
    (left,) = kept(cli)
    assert left.read_text() == INVENTORY + "  h3: {hots: x}\n"
    assert str(left).encode() in done.stderr


def test_an_invalid_file_can_be_fixed(cli: Cli) -> None:
    path = cli.home / "inventory.yaml"
    path.write_text("nodes: [\n")
    done = cli("inventory", "edit", EDITOR=editor(cli, "printf 'nodes:\\n  a: {}\\n' >\"$1\""))
    assert (done.returncode, path.read_text()) == (0, "nodes:\n  a: {}\n")


def test_a_file_that_changed_meanwhile_is_not_replaced_and_the_text_is_saved(cli: Cli) -> None:
    path = cli.home / "inventory.yaml"
    script = f"echo '  mine: {{}}' >>\"$1\"; echo '  theirs: {{}}' >>{path}"
    done = cli("inventory", "edit", EDITOR=editor(cli, script))
    assert done.returncode == 2
    assert b"the file was changed meanwhile" in done.stderr
    assert path.read_text() == INVENTORY + "  theirs: {}\n"
    assert [each.read_text() for each in kept(cli)] == [INVENTORY + "  mine: {}\n"]


def test_an_editor_that_fails_changes_nothing(cli: Cli) -> None:
    for argv in ("no-such-editor", editor(cli, 'echo x >"$1"; exit 3')):
        done = cli("inventory", "edit", EDITOR=argv, VISUAL="")
        assert done.returncode == 2
        assert (cli.home / "inventory.yaml").read_text() == INVENTORY
    assert cli("--no-input", "inventory", "edit", EDITOR="true").returncode == 2


def test_a_first_inventory_can_be_written_in_the_editor(cli: Cli) -> None:
    path = cli.home / "inventory.yaml"
    path.unlink()
    assert cli("inventory", "edit", EDITOR="true").returncode == 0
    assert not path.exists()
    assert cli("inventory", "edit", EDITOR=editor(cli, "echo '  a: {}' >>\"$1\"")).returncode == 0
    assert path.read_text().endswith("\n  a: {}\n")


HOSTS = "[web]\nweb[1:2] ansible_host_key_checking=no\n[db]\nh9 ansible_port=7\n"
LINES = ['  web[1-2]: {host: "{name}", tags: [web]}', "  h9: {host: h9, port: 7, tags: [db]}"]


def test_import_of_ansible_adds_lines_and_reports_the_rest(cli: Cli) -> None:
    path = cli.home / "inventory.yaml"
    (cli.folder / "hosts").write_text(HOSTS)
    (cli.folder / "group_vars").mkdir()
    dry = cli("inventory", "import", "--ansible", "hosts", "--dry-run")
    assert dry.stdout.decode().splitlines() == LINES
    assert path.read_text() == INVENTORY
    done = cli("inventory", "import", "--ansible", "hosts")
    assert done.returncode == 0
    assert path.read_text() == INVENTORY + "".join(f"{line}\n" for line in LINES)
    assert done.stdout.decode() == f"written to {path.resolve()}:\n" + "".join(f"{line}\n" for line in LINES)
    assert done.stderr.decode().splitlines() == [
        "not imported: ansible_host_key_checking is not supported: web1, web2",
        "not imported: the folder group_vars/ was not read",
    ]
    again = cli("--json", "inventory", "import", "--ansible", "hosts")
    assert again.returncode == 2
    assert "web1, web2, h9" in json.loads(again.stdout)["error"]["message"]
    assert path.read_text() == INVENTORY + "".join(f"{line}\n" for line in LINES)


def test_import_of_ssh_config_follows_includes(cli: Cli) -> None:
    folder = cli.folder / ".ssh"
    folder.mkdir()
    (folder / "config").write_text("Include more*\nInclude config\nHost one\n  User x\nHost *\n")
    (folder / "more.conf").write_text("Host two three\n")
    done = cli("--json", "inventory", "import", "--ssh-config", "t*")
    assert json.loads(done.stdout)["written"] == ["  two: {ssh_config: two}", "  three: {ssh_config: three}"]
    (cli.home / "inventory.yaml").unlink()
    assert cli("inventory", "import", "--ssh-config").returncode == 0
    assert "  one: {ssh_config: one}\n" in (cli.home / "inventory.yaml").read_text()


def test_unusable_imports_are_errors(cli: Cli) -> None:
    (cli.folder / "empty").write_text("# nothing\n")
    for argv, status in (
        (["--ansible", "none"], 127),
        (["--ansible", "empty"], 2),
        (["--ansible", "."], 2),
        (["--ssh-config"], 127),
        ([], 2),
    ):
        done = cli("inventory", "import", *argv)
        assert done.returncode == status, (argv, done)
        assert done.stderr.startswith(b"error: ")
    assert (cli.home / "inventory.yaml").read_text() == INVENTORY
