"""Parsing of the inventory: its values, its errors with their places, and the output as YAML and JSON."""

from __future__ import annotations

import json
import re
import string
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sshgrid import inventory
from sshgrid.errors import InventoryError
from sshgrid.inventory import Inventory
from sshgrid.inventory import text as inventory_text
from sshgrid.inventory.schema import Defaults, Document, GroupFields, LanguageFields, NodeFields, RetryFields
from sshgrid.model import Group, Node, RetryPolicy
from sshgrid.policy import placement
from sshgrid.toolchains import LANGUAGES

SHIPPED = Path(__file__).parents[3] / "inventory.yaml"

INTERFACE = """\
version: 1
defaults: {user: grid, slots: auto, workdir: /var/tmp/sshgrid-{uid}, connect_timeout: 10s}
toolchains:                                  # adds to, or overrides, the built-in table
  cobol: {match: ["*.cob"], compile: [cobc, -x, -o, "{exe}", "{src}"], run: ["{exe}", "{args}"], probe: [cobc, -v]}
nodes:
  alpha: {host: 10.0.0.11, tags: [fast], toolchains: [java, c, cpp]}
  beta:  {ssh_config: lab-beta, slots: 4, weight: 0.5}
  node[01-10]: {host: "{name}.lab.example", tags: [lab], max_load: 80%, identity_file: ~/.ssh/lab, port: 22}
  here:  {connection: local}
placement: least-loaded                      # or round-robin, pack
retry: {retries: 2, backoff: 2s, backoff_max: 60s, patience: [10s, 10m]}
queue: sqlite
"""


def parse(text: str | bytes) -> Inventory:
    return inventory.parse(text.encode() if isinstance(text, str) else text, "inventory.yaml")


def node(fields: str, more: str = "") -> Node:
    return parse(f"nodes:\n  n: {fields}\n{more}").nodes[0]


def error_of(text: str | bytes) -> str:
    with pytest.raises(InventoryError) as caught:
        parse(text)
    assert caught.value.hint
    assert caught.value.exit_status == 125
    return caught.value.message


def places(message: str) -> list[str]:
    return re.findall(r"^inventory\.yaml:(\d+:\d+): ", message, re.MULTILINE)


# --- valid files ------------------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_is_valid() -> None:
    found = parse(INTERFACE)
    by_name = {node.name: node for node in found.nodes}
    assert list(by_name) == ["alpha", "beta", *(f"node{number:02d}" for number in range(1, 11)), "here"]
    assert by_name["alpha"] == Node(
        "alpha", "10.0.0.11", user="grid", tags=frozenset({"fast"}), toolchains=frozenset({"java", "c", "cpp"})
    )
    assert by_name["beta"] == Node("beta", user="grid", ssh_config="lab-beta", slots=4, weight=0.5)
    assert by_name["node07"] == Node(
        "node07",
        "node07.lab.example",
        user="grid",
        port=22,
        tags=frozenset({"lab"}),
        max_load=0.8,
        identity_file="~/.ssh/lab",
    )
    assert by_name["here"] == Node("here", connection="local")
    assert (found.placement, found.retry) == ("least-loaded", RetryPolicy())


def test_toolchains_add_a_language_or_change_keys_of_a_built_in_one() -> None:
    text = """
toolchains:
  abap: {match: ["*.abap"], compile: [[cobc, -c], [cobc, -x]], run: ["{exe}"], probe: [cobc, --version]}
  c: {compile: [tcc, -o, "{exe}", "{srcs}"]}
nodes: {a: {toolchains: [abap, c]}}
"""
    table = {language.name: language for language in parse(text).languages}
    builtin = {language.name: language for language in LANGUAGES}
    assert table["abap"].compile == (("cobc", "-c"), ("cobc", "-x"))
    assert table["abap"].version == ("cobc", "--version")
    assert table["c"].compile == (("tcc", "-o", "{exe}", "{srcs}"),)
    assert (table["c"].match, table["c"].run) == (builtin["c"].match, builtin["c"].run)
    assert list(table) == [*builtin, "abap"]


def test_values_of_a_node_override_the_defaults() -> None:
    text = """
defaults: {user: grid, port: 2222, tags: [a], slots: 3, host: "{name}.lab", connect_timeout: 5s}
nodes:
  one:
  two: {user: me, slots: auto, tags: [], host: other}
  three: {ssh_config: alias}
  four: {connection: local}
"""
    one, two, three, four = parse(text).nodes
    common: dict[str, Any] = {"port": 2222, "connect_timeout_seconds": 5.0}
    assert one == Node("one", "one.lab", user="grid", tags=frozenset("a"), slots=3, **common)
    assert two == Node("two", "other", user="me", **common)
    assert three == Node("three", "", user="grid", ssh_config="alias", tags=frozenset("a"), slots=3, **common)
    assert four == Node("four", connection="local", tags=frozenset("a"), slots=3, connect_timeout_seconds=5.0)


def test_the_default_host_of_a_node_is_its_name() -> None:
    assert node("{}").host == node("").host == node("{drained: true}").host == "n"


@pytest.mark.parametrize(
    ("fields", "key", "value"),
    [
        ("{max_load: 80%}", "max_load", 0.8),
        ("{max_load: 0.8}", "max_load", 0.8),
        ("{max_load: 150 %}", "max_load", 1.5),
        ("{max_load: 1}", "max_load", 1.0),
        ("{slots: auto}", "slots", None),
        ("{slots: 4}", "slots", 4),
        ("{slots: 0x10}", "slots", 16),
        ("{slots: 010}", "slots", 10),
        ("{weight: 2}", "weight", 2.0),
        ("{weight: 1e-1}", "weight", 0.1),
        ("{drained: true}", "drained", True),
        ("{drained: False}", "drained", False),
        ("{connect_timeout: 500ms}", "connect_timeout_seconds", 0.5),
        ("{connect_timeout: 3}", "connect_timeout_seconds", 3.0),
        (
            "{tags: [no, 1:30, 2024-01-01, yes, off, 0o9]}",
            "tags",
            frozenset(["no", "1:30", "2024-01-01", "yes", "off", "0o9"]),
        ),
        ("{tags: []}", "tags", frozenset()),
        ("{toolchains: []}", "toolchains", frozenset()),
        ("{host: '::1'}", "host", "::1"),
        ("{host: 12:30:45}", "host", "12:30:45"),
        ("{user: no}", "user", "no"),
        ("{user: '017'}", "user", "017"),
        ("{workdir: '/scratch/{name}/{uid}'}", "workdir", "/scratch/n/{uid}"),
        ("{known_hosts: '~/.ssh/{name}'}", "known_hosts", "~/.ssh/n"),
        ("{ssh_config: 'lab-{name}'}", "ssh_config", "lab-n"),
        ("{host: n-{name}.lab}", "host", "n-n.lab"),
    ],
)
def test_a_value_is_read_by_yaml_1_2_and_converted(fields: str, key: str, value: object) -> None:
    assert getattr(node(fields), key) == value


@pytest.mark.parametrize("name", ["no", "017", "1", "true", "1:30", "2024-01-01", "null", "a.b:c", "_x", "0x1F", "1e3"])
def test_a_word_with_a_meaning_in_yaml_is_a_valid_node_name(name: str) -> None:
    assert [node.name for node in parse(f"nodes:\n  {name}: {{}}\n").nodes] == [name]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("Null", None),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("y", "y"),
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("017", 17),
        ("0o17", 15),
        ("0x1f", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-.INF", float("-inf")),
        (".", "."),
        ("1.2.3", "1.2.3"),
        ("9" * 5000, "9" * 5000),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_A5_a_plain_scalar_has_its_value_of_the_yaml_1_2_core_schema(text: str, value: object) -> None:
    found = inventory_text.resolve(text)
    assert (type(found), found) == (type(value), value)


def test_the_digest_depends_on_the_text() -> None:
    assert parse(INTERFACE).digest == parse(INTERFACE).digest != parse(INTERFACE + "# x\n").digest
    assert len(parse(INTERFACE).digest) == 64


@pytest.mark.parametrize("text", ["---\nnodes: {a: }\n", "nodes: {a: }\n...\n", "%YAML 1.2\n---\nnodes: {a: }\n"])
def test_document_markers_around_one_document_are_valid(text: str) -> None:
    assert [node.name for node in parse(text).nodes] == ["a"]


def test_line_endings_of_other_systems_give_the_same_nodes() -> None:
    for newline in ("\r\n", "\r"):
        assert parse(INTERFACE.replace("\n", newline)).nodes == parse(INTERFACE).nodes


def test_the_shipped_inventory_has_two_local_nodes() -> None:
    found = inventory.load(SHIPPED)
    assert [(node.name, node.connection, node.slots) for node in found.nodes] == [
        ("here-1", "local", None),
        ("here-2", "local", None),
    ]


def test_every_commented_example_in_the_shipped_inventory_is_valid() -> None:
    text = re.sub(r"^( *)# ( *(?:[\w\[\]-]+:|\w+: \{).*)$", r"\1\2", SHIPPED.read_text(), flags=re.MULTILINE)
    names = [node.name for node in parse(text).nodes]
    assert {"alpha", "beta", "node10", "gamma", "here-1"} <= set(names)
    assert "cobol" in {language.name for language in parse(text).languages}


def test_500_nodes_are_parsed_in_less_than_600_milliseconds() -> None:
    entry = "{{host: 10.0.{0}.{1}, tags: [lab, fast], slots: 4, max_load: 80%, port: 22}}"
    lines = [f"  n{number}: {entry.format(number // 250, number % 250)}" for number in range(500)]
    text = "\n".join(["nodes:", *lines, ""])
    started = time.process_time()
    assert len(parse(text).nodes) == 500
    assert time.process_time() - started < 0.6


# --- errors -----------------------------------------------------------------------------------------------------------


def test_all_errors_of_a_file_are_reported_with_line_column_and_caret() -> None:
    message = error_of(
        "version: 2\n"
        "defaults: {usr: grid}\n"
        "nodes:\n"
        "  a: {hosts: x, port: 0}\n"
        "  b: {slots: many, toolchains: [jave]}\n"
        "placement: leastloaded\n"
        "qeue: sqlite\n"
    )
    assert places(message) == ["1:10", "2:12", "4:7", "4:23", "5:14", "5:33", "6:12", "7:1"]
    assert "inventory.yaml:4:7: unknown key 'hosts'; did you mean 'host'?\n" in message
    assert "\n      a: {hosts: x, port: 0}\n" + " " * 10 + "^\n" in message
    for suggestion in ("'user'", "'java'", "'least-loaded'", "'queue'"):
        assert f"did you mean {suggestion}?" in message


def test_the_caret_is_under_the_error_in_a_long_line() -> None:
    message = error_of(
        "nodes: {a: {}, " + ", ".join(f"n{number}: {{}}" for number in range(100)) + ", z: {hosts: x}}\n"
    )
    head, line, caret = message.splitlines()
    assert line[caret.index("^") :].startswith("hosts")
    assert len(line) < 200
    assert head.endswith("did you mean 'host'?")


def test_errors_above_fifty_are_only_counted() -> None:
    message = error_of("nodes:\n" + "".join(f"  n{number}: {{port: x}}\n" for number in range(80)))
    assert len(places(message)) == 50
    assert message.endswith("inventory.yaml: and 30 more errors")


def test_A1_a_file_over_1_mib_is_an_error_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml, "parse", None)
    assert "larger than 1024 KiB" in error_of(b"nodes: {a: {}}\n" + b"#" * 1024 * 1024)


def test_A1_a_flat_list_of_1_mib_is_an_error_within_two_seconds() -> None:
    started = time.process_time()
    assert "more than 100000 values" in error_of("nodes: [" + "a," * 500_000 + "]")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "a:\n" + "\n".join(" " * n + "b:" for n in range(1, 1000)),
    ],
)
def test_A2_deep_nesting_is_an_error_while_reading(text: str) -> None:
    started = time.process_time()
    assert "more than 30 levels of nesting" in error_of(text)
    assert time.process_time() - started < 1


def test_A2_a_key_that_is_a_list_or_a_mapping_is_an_error() -> None:
    assert "a key must be a name, not a list or a mapping" in error_of("? " * 100_000)


def test_A2_deep_nesting_is_an_error_with_the_pure_python_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_text, "_LOADER", yaml.SafeLoader)
    assert "more than 30 levels of nesting" in error_of("[" * 100_000)
    assert parse(INTERFACE).nodes


def test_A3_each_anchor_and_alias_is_an_error_at_its_place() -> None:
    message = error_of("nodes:\n  a: &x {host: h}\n  b: *x\n  c: {<<: *x}\n")
    assert places(message) == ["2:6", "3:6", "4:7", "4:11"]
    assert "merge keys are not allowed" in message
    laughs = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 10))
    assert "aliases are not allowed" in error_of("l0: &l0 lol\n" + laughs)


def test_A4_a_duplicate_key_is_an_error_with_both_lines() -> None:
    message = error_of("nodes:\n  a: {host: x}\n  b: {port: 1, port: 2}\n  'a': {}\n")
    assert "inventory.yaml:4:3: duplicate key 'a': first on line 2, again on line 4" in message
    assert "inventory.yaml:3:16: duplicate key 'port': first on line 3, again on line 3" in message


def test_A4_errors_in_both_values_of_a_duplicate_key_are_reported() -> None:
    message = error_of("nodes:\n  a: {hosts: x}\n  a: {port: 0, port: x, prot: 1}\n")
    assert places(message) == ["2:7", "3:3", "3:13", "3:16", "3:25"]


def test_A4_a_node_in_two_ranges_is_an_error() -> None:
    message = error_of("nodes:\n  n[1-5]: {}\n  n[4-8]: {}\n  n2: {}\n")
    assert "3:3: the node 'n4' is already defined by 'n[1-5]'" in message
    assert "4:3: the node 'n2' is already defined by 'n[1-5]'" in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("{user: 017}", "'user' must be text, not 17 (a number); write it in quotes"),
        ("{user: true}", "'user' must be text, not true (a boolean); write it in quotes"),
        ("{user: }", "'user' must be text, not nothing"),
        ("{tags: [1]}", "'tags' must be text, not 1 (a number); write it in quotes"),
        ("{tags: fast}", "'tags' must be a list, not \"fast\""),
        ("{host: {name}}", "'host' must be text, not a mapping; write a {template} in quotes"),
        ("{port: '22'}", "'port' must be a whole number, not \"22\""),
        ("{port: 22.5}", "'port' must be a whole number, not 22.5 (a number)"),
        ("{port: 0}", "'port' must be at least 1, not 0"),
        ("{port: 65536}", "'port' must be at most 65535, not 65536"),
        ("{drained: no}", "'drained' must be true or false, not \"no\""),
        ("{slots: true}", "'slots' must be auto or a whole number, not true (a boolean)"),
        ("{slots: 0}", "must be between 1 and 10000, not 0; with `drained: true` a node starts no jobs"),
        ("{weight: 0}", "'weight' must be above 0 and at most 1000, not 0"),
        ("{weight: .nan}", "'weight' must be above 0"),
        ("{weight: .inf}", "'weight' must be above 0"),
        ("{max_load: 80}", "'max_load' must be above 0% and at most 1000% of the cores, not 80; did you mean 80%?"),
        ("{max_load: 0%}", "above 0"),
        ("{max_load: .nan}", "above 0"),
        ("{max_load: full}", "must be a share of the cores such as 80% or 0.8"),
        ("{connect_timeout: 1:30}", "'1:30' is not a duration; write it like 500ms"),
        ("{connect_timeout: 2h}", "'connect_timeout' must be between 100ms and 1h, not 2h"),
        ("{connect_timeout: [1]}", "must be a duration such as 10s, not a list"),
        ("{connection: telnet}", "'connection' must be ssh or local, not \"telnet\""),
        ("{workdir: tmp}", "not an absolute path"),
        ("{workdir: /}", "not an absolute path"),
        ("{workdir: /a/../b}", "not an absolute path"),
        ("{workdir: '/a/{gid}'}", "unknown placeholder {gid}; use {uid} or {name}"),
        ("{identity_file: -x}", "is not a valid path"),
        ("{identity_file: ''}", "is not a valid path"),
        ('{known_hosts: "a\\nb"}', "is not a valid path"),
        ("{host: x, ssh_config: y}", "'host' and 'ssh_config' cannot be used together"),
        ("{connection: local, host: x}", "'host' has no effect with `connection: local`"),
        ("{toolchains: [jaava]}", "unknown language 'jaava'; did you mean 'java'?"),
        ("{host: grid@alpha}", "write the user in the key 'user'"),
        ("{host: alpha:22}", "write the port in the key 'port'"),
        ("{address: x}", "unknown key 'address'; did you mean 'host'?"),
        ("{cores: 3}", "unknown key 'cores'; did you mean 'slots'?"),
        ("[]", "'n' must be a mapping, not a list"),
        ("local", "'n' must be a mapping, not \"local\""),
    ],
)
def test_A5_a_wrong_value_is_an_error_with_its_key_and_the_value(fields: str, words: str) -> None:
    message = error_of(f"nodes:\n  n: {fields}\n")
    assert words in message
    assert len(places(message)) == 1


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!custom", "!!str", "!!int", "!", "!<tag:x>"])
def test_A6_a_tag_is_an_error(tag: str) -> None:
    assert "2:6: tags are not allowed" in error_of(f"nodes:\n  a: {tag} {{}}\n")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("nodes: {a: {}}".encode("utf-16"), "1:1", "UTF-16"),
        ("nodes: {a: {}}".encode("utf-16-be"), "1:1", "UTF-16"),
        ("nodes: {a: {}}".encode("utf-32"), "1:1", "UTF-16"),
        (b"\xef\xbb\xbfnodes: {a: {}}", "1:1", "byte order mark"),
        (b"nodes:\n  \xc3\xa4: {host: \xff}\n", "2:13", "byte 0xff is not UTF-8"),
        (b"nodes: {a: {}}\n# \xe4\n", "2:3", "byte 0xe4 is not UTF-8"),
        (b"nodes: {a: {}} # \xed\xa0\x80", "1:18", "byte 0xed is not UTF-8"),
        (b"nodes:\n\ta: {}\n", "2:1", "a tab in the indentation"),
        (b"nodes:\n  a:\n  \thost: x\n", "3:3", "a tab in the indentation"),
        (b"nodes: {a: {}}\n---\nnodes: {b: {}}\n", "2:1", "second document"),
        (b"nodes: {a: {}}\n# \x1b[31m\n", "2:3", "character U+001B is not allowed"),
        (b"nodes: {a: {}}\n\x00", "2:1", "character U+0000 is not allowed"),
        ("nodes: {a: {}}\n# \u2028\n".encode(), "2:3", "character U+2028 is not allowed"),
        ("nodes: {a: {}}\n# \x85\n".encode(), "2:3", "character U+0085 is not allowed"),
        ("nodes: {a: {}}\n# \ue000\n".encode(), "2:3", "character U+E000 is not allowed"),
        ("nodes: {a: {}} # \ufeff\n".encode(), "1:18", "character U+FEFF is not allowed"),
    ],
)
def test_A7_anything_but_one_document_in_utf_8_is_an_error(text: bytes, place: str, words: str) -> None:
    message = error_of(text)
    assert places(message) == [place]
    assert words in message


@pytest.mark.parametrize(
    "value", ["-oProxyCommand=x", "$(id)", "a b", '"a\\nb"', "a;b", "`id`", "a/b", "é", "''", "x" * 254]
)
@pytest.mark.parametrize("key", ["host", "user", "ssh_config", "tags"])
def test_A8_a_value_that_could_be_an_option_or_a_command_is_an_error(key: str, value: str) -> None:
    written = value if value.startswith(('"', "'")) else f"'{value}'"
    message = error_of(f"nodes:\n  n: {{{key}: {f'[{written}]' if key == 'tags' else written}}}\n")
    assert "use letters, digits and . _ : -" in message


@pytest.mark.parametrize(
    "name", ["-x", "'a b'", '"a\\nb"', "$(id)", ".", "..", ":x", "é", "a/b", "''", "'n[1-'", "'n[2-1]'", "x" * 254]
)
def test_A8_an_invalid_node_name_is_an_error(name: str) -> None:
    message = error_of(f"nodes:\n  ok: {{}}\n  {name}: {{}}\n")
    assert places(message) == ["3:3"]


@pytest.mark.parametrize("key", ["password", "pass", "Password", "passphrase", "ssh_pass", "sudo_password", "secret"])
def test_a_password_is_an_error_that_does_not_show_it_and_names_copy_key(key: str) -> None:
    message = error_of(f"nodes:\n  n: {{host: x, {key}: 'hunter2, and so on', prot: 3}}\n")
    assert "sshgrid node add --copy-key" in message
    assert "hunter2" not in message
    assert "so on" not in message


def test_a_range_with_one_host_is_an_error() -> None:
    assert "2:18: all nodes of 'n[1-3]' would have the same host 'lab'" in error_of("nodes:\n  n[1-3]: {host: lab}\n")
    assert len(parse("nodes:\n  n[1-3]: {connection: local}\n").nodes) == 3


def test_more_than_10000_nodes_are_an_error() -> None:
    assert "more than 10000" in error_of("nodes:\n  n[1-20000]: {}\n")
    assert "more than 10000 nodes" in error_of("nodes:\n  a[1-6000]: {}\n  b[1-6000]: {}\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("groups: {teaching: {nodes: [alpah]}}", "unknown node 'alpah'"),
        ("groups: {teaching: {nodes: []}}", "'nodes' must not be empty"),
        ("groups: {teaching: {max_jobs_per_user: 4}}", "the key 'nodes' is required"),
        ("groups: {teaching: {nodes: [a], max_jobs_per_user: 0}}", "must be at least 1, not 0"),
        ("groups: {teaching: {nodes: [a], drained: true}}", "'drained' is a key of a node, not of 'groups'"),
        ("groups: {teaching: {nodes: [a], slot: 2}}", "unknown key 'slot'; did you mean 'slots'?"),
        ("groups: {teaching: {nodes: [a], toolchains: [pyton]}}", "unknown language 'pyton'"),
        ("queue: postgresql://host/db", "a postgresql queue is not supported"),
        ("queue: redis", "'queue' must be sqlite, not \"redis\""),
        ("version: 2", "'version' must be 1, not 2"),
        ("version: '1'", "'version' must be 1, not \"1\""),
        ("placement: packed", "did you mean 'pack'?"),
        ("retry: {retries: -1}", "'retries' must be at least 0, not -1"),
        ("retry: {patience: [10m, 10s]}", "the shortest and the longest"),
        ("retry: {patience: 10s}", "'patience' must be a list, not \"10s\""),
        ("retry: {backoff: 1 s}", "'1 s' is not a duration"),
        ("defaults: {drained: true}", "'drained' is a key of a node"),
        ("toolchains: {abap: {match: ['*.abap']}}", "the new language 'abap' needs the key 'run'"),
        ("toolchains: {abap: {}}", "the new language 'abap' needs the keys 'match' and 'run'"),
        ("toolchains: {jav: {compile: []}}", "did you mean 'java'?"),
        (
            "toolchains: {c: {compile: gcc -O3 x}}",
            "'compile' must be a list of words, not a shell command; write [gcc, -O3, x]",
        ),
        ("toolchains: {c: {run: [nice, -5]}}", "'run' must have only text as words, not -5 (a number)"),
        ("toolchains: {c: {run: ['{exee}']}}", "unknown placeholder {exee}; did you mean 'exe'?"),
        ("toolchains: {c: {run: ['x{args}']}}", "{args} must be a separate word, not a part of"),
        ("toolchains: {c: {run: []}}", "'run' must be a list of words, not an empty list"),
        ("toolchains: {c: {match: ['a/b']}}", "is not a pattern for file names"),
        ("toolchains: {'c c': {run: [x], match: [x]}}", "is not a valid language name"),
    ],
)
def test_a_wrong_section_is_an_error_at_its_line(line: str, words: str) -> None:
    message = error_of(f"nodes: {{a: {{}}}}\n{line}\n")
    assert words in message
    assert [place.split(":")[0] for place in places(message)] == ["2"]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "nodes:\n", "nodes: {}\n", "version: 1\n", "- a\n", "text\n", "nodes: []\n", "~\n"]
)
def test_a_file_without_nodes_is_an_error(text: str) -> None:
    assert error_of(text).startswith("inventory.yaml:")


def test_the_error_of_a_template_without_quotes_has_a_hint() -> None:
    assert 'write a template in quotes: "{name}.lab"' in error_of("nodes:\n  n: {host: {name}.lab}\n")
    assert 'write a template in quotes: "{name}.lab"' in error_of("nodes:\n  n:\n    host: {name}.lab\n")


@given(st.text(max_size=60))
def test_random_text_is_an_inventory_error(text: str) -> None:
    with pytest.raises(InventoryError):
        parse(text)  # random text has no nodes


@given(st.text(alphabet="{}[]:,-?&*!|>'\"%@#ab \n\t1.", max_size=60))
def test_random_yaml_syntax_never_raises(text: str) -> None:
    decoded, problems = inventory_text.decode(text.encode())
    tree, more = inventory_text.read(decoded)
    assert tree is None or isinstance(inventory_text.render([*problems, *more], "x", decoded), str)


# --- output -----------------------------------------------------------------------------------------------------------

words = st.text(alphabet=string.ascii_letters + string.digits + "._:-", min_size=1, max_size=12).filter(
    lambda word: not word.startswith("-")
)
values = st.recursive(
    st.one_of(st.text(max_size=10), st.integers(), st.booleans(), st.none(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)


@given(values)
def test_an_emitted_value_is_read_back_unchanged(value: object) -> None:
    text, problems = inventory_text.decode(f"x: {inventory_text.emit(value)}\n".encode())
    if not problems:
        tree, problems = inventory_text.read(text)
        assert problems == []
        assert tree is not None
        assert inventory_text.plain(tree) == {"x": value}


def test_show_yaml_parses_to_an_equal_inventory() -> None:
    text = INTERFACE.replace("placement: least-loaded", "placement: pack").replace("here: ", "no: ")
    found = parse(text)
    shown = inventory.show_yaml(found)
    again = parse(shown)
    assert (again.nodes, again.languages) == (found.nodes, found.languages)
    assert (again.placement, again.retry) == (found.placement, found.retry)
    assert [node.name for node in found.nodes][-1] == "no"


def test_show_is_plain_json_with_a_schema_number() -> None:
    shown = json.loads(json.dumps(inventory.show(parse(INTERFACE))))
    assert shown["schema"] == 1
    assert shown["nodes"][0]["name"] == "alpha"
    assert shown["nodes"][0]["tags"] == ["fast"]
    assert shown["retry"]["backoff_seconds"] == 2.0


def test_the_json_schema_has_exactly_the_keys_of_the_models() -> None:
    schema = json.loads(json.dumps(inventory.json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["nodes"]
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == Document.model_fields.keys()
    for model in (Defaults, NodeFields, GroupFields, LanguageFields, RetryFields):
        described = schema["$defs"][model.__name__]
        assert described["additionalProperties"] is False
        assert described["properties"].keys() == model.model_fields.keys()
        assert all({"type", "anyOf", "enum", "items"} & item.keys() for item in described["properties"].values())


@pytest.mark.parametrize("policy", sorted(placement.POLICIES))
def test_every_placement_policy_is_a_valid_value(policy: str) -> None:
    assert parse(f"nodes: {{a: }}\nplacement: {policy}\n").placement == policy
    assert len(placement.POLICIES) == len(get_args(Document.model_fields["placement"].annotation))


# --- groups -----------------------------------------------------------------------------------------------------------

GROUPS = """\
defaults: {slots: 8, tags: [all], user: grid}
nodes:
  n[1-3]: {connection: local}
  big: {slots: 16, tags: [fast]}
  alias: {}
groups:
  teaching: {nodes: ["n[1-2]", big], slots: 2, tags: [lab], max_jobs_per_user: 4}
  far: {nodes: [alias, n2], ssh_config: "jump-{name}", weight: 0.5}
"""


def test_a_group_overrides_the_defaults_and_a_node_overrides_its_groups() -> None:
    found = {node.name: node for node in parse(GROUPS).nodes}
    assert [found[name].slots for name in ("n1", "n2", "n3", "big", "alias")] == [2, 2, 8, 16, 8]
    assert found["n1"].tags == {"all", "lab", "teaching"}
    assert found["n2"].tags == {"all", "lab", "teaching", "far"}
    assert found["n3"].tags == {"all"}
    assert found["big"].tags == {"fast", "lab", "teaching"}
    assert (found["alias"].ssh_config, found["alias"].host, found["alias"].user) == ("jump-alias", "", "grid")
    assert (found["n2"].weight, found["n2"].ssh_config) == (0.5, None)  # a local node has no connection


def test_groups_have_their_nodes_and_are_shown_as_yaml() -> None:
    read = parse(GROUPS)
    assert read.groups == (
        Group("teaching", frozenset({"n1", "n2", "big"}), 4),
        Group("far", frozenset({"alias", "n2"})),
    )
    again = parse(inventory.show_yaml(read))
    assert (again.nodes, again.groups) == (read.nodes, read.groups)
