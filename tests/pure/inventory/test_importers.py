"""Imports from Ansible and ssh_config: the entries, and the notes about what was not imported."""

from __future__ import annotations

import pytest

from sshgrid import inventory
from sshgrid.errors import UsageError
from sshgrid.inventory.edit import add_nodes
from sshgrid.inventory.importers import from_ansible, from_ssh_config

INI = """\
# the machines
mail.example.com ansible_port=2200

[web]
web[01:03].lab
web04.lab:2222 ansible_user="ann"   # the odd one

[db]
db-[a:b] ansible_host="{{ lookup('x') }}"
here ansible_connection=local ansible_python_interpreter=/usr/bin/python3

[db:vars]
ansible_user = grid
ansible_password=hunter2

[lab:children]
web
db

[all:vars]
ansible_ssh_private_key_file=~/.ssh/lab
ansible_user=nobody
"""

YAML = """\
all:
  vars: {ansible_user: nobody, ansible_ssh_private_key_file: ~/.ssh/lab}
  hosts:
    mail.example.com: {ansible_port: 2200}
  children:
    lab:
      children:
        web:
          hosts:
            web[01:03].lab:
            web04.lab: &odd {ansible_port: 2222, ansible_user: ann}
        db:
          vars:
            ansible_user: grid
            ansible_password: !vault |
              $ANSIBLE_VAULT;1.1;AES256
          hosts:
            db-[a:b]: {ansible_host: "{{ lookup('x') }}"}
            here: {ansible_connection: local, ansible_python_interpreter: /usr/bin/python3}
"""

NODES: dict[str, dict[str, object]] = {
    "mail.example.com": {"host": "mail.example.com", "port": 2200, "user": "nobody"},
    "web[01-03].lab": {"host": "{name}", "user": "nobody", "tags": ["lab", "web"]},
    "web04.lab": {"host": "web04.lab", "port": 2222, "user": "ann", "tags": ["lab", "web"]},
    "db-a": {"host": "db-a", "user": "grid", "tags": ["db", "lab"]},
    "db-b": {"host": "db-b", "user": "grid", "tags": ["db", "lab"]},
    "here": {"connection": "local", "tags": ["db", "lab"]},
}


@pytest.mark.parametrize(("name", "text"), [("hosts", INI), ("hosts.yml", YAML), ("hosts", YAML)])
def test_both_formats_of_an_ansible_inventory_give_the_same_nodes(name: str, text: str) -> None:
    found = from_ansible(text, name)
    keyed = {
        name: fields if "connection" in fields else {**fields, "identity_file": "~/.ssh/lab"}
        for name, fields in NODES.items()
    }
    assert found.nodes == keyed
    assert "hunter2" not in str(found)
    assert sorted(found.notes) == [
        "ansible_host has a value that only Ansible can compute: db-a, db-b",
        "ansible_password is not supported: db-a, db-b, here",
        "ansible_python_interpreter is not supported: here",
    ]
    after = add_nodes("# ours\nnodes:\n  a: {}\n", found.nodes)
    assert [node.name for node in inventory.parse(after.encode(), "i").nodes][-3:] == ["db-a", "db-b", "here"]


def test_a_range_with_a_differing_host_is_imported_as_single_hosts() -> None:
    found = from_ansible("[a]\nn[1:3]\n[b]\nn2 ansible_port=7\n", "hosts")
    assert found.nodes == {
        "n1": {"host": "n1", "tags": ["a"]},
        "n2": {"host": "n2", "port": 7, "tags": ["a", "b"]},
        "n3": {"host": "n3", "tags": ["a"]},
    }


def test_a_range_with_steps_is_imported_as_single_hosts() -> None:
    assert [*from_ansible("n[0:4:2]\n", "hosts").nodes] == ["n0", "n2", "n4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("hosts", "[web]\nweb1 and words\n", "hosts:2: expected a host"),
        ("hosts", "[web:vars]\nfoo\n", "hosts:2: expected KEY=VALUE"),
        ("hosts", "n[1:999999]\n", "more than 10000 hosts"),
        ("hosts", "n[a:99]\n", "has an invalid range"),
        ("hosts", "[a:children]\nb\n[b:children]\na\n", "contain each other"),
        ("h.yml", "- a\n", "it has no groups"),
        ("h.yml", "all: {hosts: [a]}\n", "must be a mapping"),
        ("h.yml", "a: &a {children: {b: *a}}\n", "invalid YAML|nested too deeply"),
        ("h.yml", "a: [\n", "invalid YAML"),
        ("h.yml", "[" * 5000, "invalid YAML"),
    ],
)
def test_a_file_in_another_format_is_an_error_with_its_place(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_ansible(text, name)


SSH_CONFIG = """\
Host *
    ServerAliveInterval 5
Host lab-beta lab-gamma *.example !lab-x
    HostName 10.0.0.2
host=plain  # a comment
Match host other
    User x
Host "quoted one" -dash
"""


def test_aliases_without_wildcards_are_imported_and_invalid_names_are_noted() -> None:
    found = from_ssh_config([SSH_CONFIG, "Host more\nHost plain\n"])
    assert found.nodes == {name: {"ssh_config": name} for name in ("lab-beta", "lab-gamma", "plain", "more")}
    assert found.notes == [f"Host {name}: not a valid node name" for name in ("quoted one", "-dash")]
    assert [*from_ssh_config([SSH_CONFIG], "lab-*").nodes] == ["lab-beta", "lab-gamma"]
