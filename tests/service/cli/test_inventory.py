"""`inventory` and `node`: the file, its edits, and which host keys are trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sshgrid.cli.keys import remember_key
from sshgrid.cli.node_add import parse_address
from sshgrid.errors import UsageError
from sshgrid.model import NodeState
from sshgrid.protocol import messages
from tests.service.conftest import Cli
from tests.service.fake_master import FakeMaster, node_line


def test_check_counts_and_errors_name_file_line_and_column(cli: Cli) -> None:
    good = cli("inventory", "check")
    assert good.stdout.decode() == f"{(cli.home / 'inventory.yaml').resolve()}: 1 node, no errors\n"
    (cli.home / "inventory.yaml").write_text("version: 1\nnodes:\n  h2: {hosts: x}\n  h2: {host: y}\n")
    bad = cli("inventory", "check")
    assert bad.returncode == 1
    assert b"inventory.yaml:3:8" in bad.stderr
    assert b"inventory.yaml:4:3" in bad.stderr


def test_show_path_and_schema(cli: Cli) -> None:
    assert b"h2: {host: 127.0.0.1" in cli("inventory", "show").stdout
    assert json.loads(cli("inventory", "show", "--json").stdout)["nodes"][0]["name"] == "h2"
    assert cli("inventory", "path").stdout.decode().strip() == str((cli.home / "inventory.yaml").resolve())
    assert json.loads(cli("inventory", "schema").stdout)["type"] == "object"


def test_node_add_prints_the_line_that_it_added(cli: Cli, fake: FakeMaster) -> None:
    path = cli.home / "inventory.yaml"
    before = path.read_bytes()
    argv = ("ann@10.0.0.3:2222", "--tag", "fast", "--tag", "lab", "--slots", "2", "--identity-file", "~/k")
    done = cli("node", "add", "h3", *argv, "--no-check")
    line = "  h3: {host: 10.0.0.3, user: ann, port: 2222, identity_file: ~/k, slots: 2, tags: [fast, lab]}"
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"written to {path.resolve()}:\n{line}\n"
    assert path.read_bytes() == before + line.encode() + b"\n"
    assert [type(each) for each, _ in fake.requests if not isinstance(each, messages.Hello)] == [messages.Reload]
    assert cli("node", "rm", "h3").returncode == 0
    assert path.read_bytes() == before


def test_node_add_checks_the_machine_before_it_writes_and_the_master_after(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(messages.CheckNodes, messages.NodesReply((node_line("here"),)))
    done = json.loads(cli("--json", "node", "add", "here", "--local", "--tag", "own").stdout)
    assert done["written"] == ["  here: {connection: local, tags: [own]}"]
    assert [node["name"] for node in done["nodes"]] == ["here"]
    assert [type(each) for each, _ in fake.requests if not isinstance(each, messages.Hello)] == [
        messages.Reload,
        messages.CheckNodes,
    ]


def test_a_machine_that_does_not_answer_is_not_added(cli: Cli, fake: FakeMaster) -> None:
    before = (cli.home / "inventory.yaml").read_bytes()
    done = cli("node", "add", "h3", "127.0.0.1:9")
    assert done.returncode == 1
    hint = b"check with: ssh -p 9 127.0.0.1; --no-check adds the node without this check"
    assert done.stderr == b"error: h3: connection refused\nhint: " + hint + b"\n"
    assert (cli.home / "inventory.yaml").read_bytes() == before
    assert not fake.received(messages.Reload)


def test_an_existing_name_is_refused_before_any_connection(cli: Cli, fake: FakeMaster) -> None:
    done = cli("node", "add", "h[1-2]", "10.255.255.1")
    assert done.returncode == 2
    assert done.stderr == b"error: the node 'h2' is already in the inventory\nhint: sshgrid node rm h2\n"


def test_node_add_creates_the_first_inventory(cli: Cli) -> None:
    (cli.home / "inventory.yaml").unlink()
    with FakeMaster(cli_places_without_inventory(cli)):
        assert cli("node", "add", "here", "--local").returncode == 0
    assert (cli.home / "inventory.yaml").read_text() == "version: 1\nnodes:\n  here: {connection: local}\n"


def cli_places_without_inventory(cli: Cli):  # type: ignore[no-untyped-def]
    from sshgrid import paths

    return paths.places(None, cli.environ, str(cli.folder), str(cli.folder), must_exist=False)


def test_a_node_that_does_not_work_is_reported_with_status_1(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(
        messages.CheckNodes, messages.NodesReply((node_line("h2", state=NodeState.DOWN, reason="no route to host"),))
    )
    done = cli("node", "check", "h2")
    assert done.returncode == 1
    assert done.stderr == b"error: h2 does not work: no route to host\nhint: ssh 127.0.0.1\n"


def test_the_hint_for_a_changed_host_key_removes_the_old_key(cli: Cli, fake: FakeMaster) -> None:
    reason = "host key changed: it shows SHA256:abc, which is not the key in /home/ann/.ssh/known_hosts:7"
    fake.reply(messages.CheckNodes, messages.NodesReply((node_line("h2", state=NodeState.DOWN, reason=reason),)))
    done = cli("node", "check", "h2")
    remove = b"ssh-keygen -R 127.0.0.1 -f /home/ann/.ssh/known_hosts"
    accept = b"sshgrid node check h2 --accept-new"
    assert done.stderr.endswith(b"hint: if the machine was reinstalled: " + remove + b", then: " + accept + b"\n")


def test_A20_an_unknown_host_key_is_not_trusted_unless_accepted(cli: Cli, fake: FakeMaster) -> None:
    unknown = node_line("h2", state=NodeState.DOWN, reason="unknown host key SHA256:abc")
    fake.reply(messages.CheckNodes, messages.NodesReply((unknown,)))
    done = cli("node", "check", "h2")
    assert done.returncode == 1
    assert done.stderr.endswith(b"hint: sshgrid node check h2 --accept-new\n")
    assert not (cli.home / "known_hosts").exists()


def test_an_accepted_key_is_written_to_a_private_file(tmp_path: Path) -> None:
    known_hosts = tmp_path / "config" / "known_hosts"
    remember_key(str(known_hosts), "h2 ssh-ed25519 AAAA\n")
    remember_key(str(known_hosts), "h3 ssh-ed25519 BBBB")
    assert known_hosts.read_text() == "h2 ssh-ed25519 AAAA\nh3 ssh-ed25519 BBBB\n"
    known_hosts.write_text("a line without its end")
    remember_key(str(known_hosts), "h4 ssh-ed25519 CCCC")
    assert known_hosts.read_text() == "a line without its end\nh4 ssh-ed25519 CCCC\n"
    assert known_hosts.stat().st_mode & 0o777 == 0o600


def test_drain_resume_and_rm_edit_the_file_and_keep_comments(cli: Cli, fake: FakeMaster) -> None:
    path = cli.home / "inventory.yaml"
    path.write_text("version: 1\nnodes:\n  # the good one\n  h1: {host: a}\n  h2: {host: b}  # spare\n")
    assert cli("node", "drain", "h2").returncode == 0
    assert "h2: {host: b, drained: true}  # spare" in path.read_text()
    assert cli("node", "resume", "h2").returncode == 0
    assert "h2: {host: b}  # spare" in path.read_text()
    assert json.loads(cli("node", "rm", "h2", "--json").stdout) == {"schema": 1, "nodes": ["h2"]}
    assert path.read_text() == "version: 1\nnodes:\n  # the good one\n  h1: {host: a}\n"
    assert len(fake.received(messages.Reload)) == 3


def test_an_edit_does_not_start_a_master(cli: Cli) -> None:
    assert cli("node", "drain", "h2").returncode == 0
    assert not Path(cli.places.socket).exists()


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("h", {"host": "h"}),
        ("u@h", {"host": "h", "user": "u"}),
        ("u@h:22", {"host": "h", "user": "u", "port": 22}),
        ("[fe80::1]:22", {"host": "fe80::1", "port": 22}),
        ("u@::1", {"host": "::1", "user": "u"}),
    ],
)
def test_an_address_is_parsed(text: str, fields: dict[str, object]) -> None:
    assert parse_address(text) == fields


@pytest.mark.parametrize("text", ["", "@h", "u@", "h:0", "h:99999", "a@b@c", "h:port"])
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        parse_address(text)


@pytest.mark.parametrize(("text"), ["-oProxyCommand=touch /tmp/x", "$(id)@h", "h\nx"])
def test_A8_a_hostile_address_does_not_get_into_the_file(cli: Cli, text: str) -> None:
    before = (cli.home / "inventory.yaml").read_text()
    done = cli("node", "add", "h9", "--", text)
    assert done.returncode in (2, 125)
    assert done.stderr.startswith(b"error: ")
    assert (cli.home / "inventory.yaml").read_text() == before


def test_node_add_needs_exactly_one_address(cli: Cli) -> None:
    for argv in (["h9"], ["h9", "host", "--local"], ["h9", "--local", "--ssh-config", "x"]):
        assert cli("node", "add", *argv).returncode == 2
