"""Edits by command: every byte outside the change stays, and other edits are refused."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid import inventory
from sshgrid.errors import InventoryError, NoSuchNode, UsageError
from sshgrid.inventory.edit import add_node, remove_nodes, set_drained
from sshgrid.model import Node
from sshgrid.notation.selectors import expand

TEXT = """\
# our grid
version: 1

defaults: {user: grid}   # everywhere

nodes:
  # the fast one
  alpha: {host: 10.0.0.11, tags: [fast]}   # in the cellar

  beta:
    # behind the jump host
    ssh_config: lab-beta
    tags:
      - slow   # really
      # and loud
    # moved in May

  # ten alike
  node[01-10]: {host: "{name}.lab"}
  gamma:
  # delta: {host: gone}

placement: pack
"""


def nodes(text: str) -> dict[str, Node]:
    return {node.name: node for node in inventory.parse(text.encode(), "inventory.yaml").nodes}


# --- add --------------------------------------------------------------------------------------------------------------


def test_a_new_node_is_inserted_after_the_last_one_and_before_the_next_comment() -> None:
    changed = add_node(TEXT, "delta", {"host": "10.0.0.9", "port": 2222, "tags": ["a", "no"], "slots": "auto"})
    line = '  delta: {host: 10.0.0.9, port: 2222, tags: [a, "no"], slots: auto}\n'
    assert changed == TEXT.replace("  gamma:\n", "  gamma:\n" + line)
    assert nodes(changed)["delta"] == Node("delta", "10.0.0.9", user="grid", port=2222, tags=frozenset({"a", "no"}))


def test_a_new_node_is_inserted_after_the_deeper_comments_of_the_last_one() -> None:
    text = "nodes:\n    a:\n        host: x  # y\n\n        # port: 3\n    # b: {}\n"
    assert (
        add_node(text, "b", {}) == "nodes:\n    a:\n        host: x  # y\n\n        # port: 3\n    b: {}\n    # b: {}\n"
    )


@pytest.mark.parametrize("name", ["node[11-12]", "no", "1", "a.b", "_x", "x:y"])
def test_a_new_name_is_quoted_where_yaml_needs_it(name: str) -> None:
    assert nodes(add_node(TEXT, name, {})).keys() - nodes(TEXT).keys() == set(expand(name))


def test_the_first_node_is_added_to_an_empty_file() -> None:
    assert add_node("", "a", {"host": "h"}) == "version: 1\nnodes:\n  a: {host: h}\n"
    assert add_node("# mine", "a", {}) == "# mine\nversion: 1\nnodes:\n  a: {}\n"
    assert add_node("# mine\r\n", "a", {}) == "# mine\r\nversion: 1\r\nnodes:\r\n  a: {}\r\n"


@pytest.mark.parametrize("name", ["alpha", "node03", "node[09-12]"])
def test_adding_a_node_that_exists_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="already in the inventory"):
        add_node(TEXT, name, {})


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("-x", {}, "is not a valid node name"),
        ("a\nb", {}, "is not a valid node name"),
        ("x: {}", {}, "is not a valid node name"),
        ("new", {"host": "-oProxyCommand=x"}, "is not a valid host"),
        ("new", {"hots": "x"}, "did you mean 'host'?"),
        ("new", {"password": "x"}, "--copy-key"),
        ("new", {"tags": ["a, drained: true"]}, "is not a valid name"),
        ("new", {"slots": 0}, "'slots' must be between"),
    ],
)
def test_A8_a_node_that_would_make_the_file_invalid_is_refused(
    name: str, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        add_node(TEXT, name, fields)
    assert words in caught.value.message


# --- remove -----------------------------------------------------------------------------------------------------------


def test_a_node_is_removed_with_its_deeper_comments_and_without_the_comment_above() -> None:
    changed = remove_nodes(TEXT, ["beta"])
    start, end = TEXT.index("  beta:"), TEXT.index("\n  # ten alike")
    assert changed == TEXT[:start] + TEXT[end:]
    assert "# the fast one" in remove_nodes(TEXT, ["alpha"])
    assert "in the cellar" not in remove_nodes(TEXT, ["alpha"])


def test_the_comment_above_the_next_node_stays() -> None:
    """Editors that rewrite the file lose it: ruamel.yaml does."""
    for name in ("alpha", "beta", "gamma", "node[01-10]"):
        changed = remove_nodes(TEXT, [name])
        for comment in ("# our grid", "# everywhere", "# the fast one", "# ten alike", "# delta: {host: gone}"):
            assert comment in changed


def test_a_range_is_removed_as_a_whole_and_one_node_of_it_is_refused_with_a_hint() -> None:
    assert "node" not in "".join(nodes(remove_nodes(TEXT, ["node[01-10]"])))
    with pytest.raises(UsageError) as caught:
        remove_nodes(TEXT, ["node03"])
    assert "'node03' is a part of the range 'node[01-10]'" in caught.value.message
    assert "sshgrid inventory edit" in caught.value.hint


def test_several_nodes_are_removed_at_once_and_all_nodes_of_a_range_are_the_range() -> None:
    members = [f"node{number:02d}" for number in range(1, 11)]
    assert list(nodes(remove_nodes(TEXT, [*members, "alpha"]))) == ["beta", "gamma"]
    with pytest.raises(UsageError, match="is a part of the range"):
        remove_nodes(TEXT, [*members[1:], "alpha"])


def test_removing_the_last_node_is_refused() -> None:
    with pytest.raises(UsageError, match="the last node cannot be removed"):
        remove_nodes("nodes:\n  a: {}\n", ["a"])
    with pytest.raises(UsageError, match="the last node cannot be removed"):
        remove_nodes(TEXT, list(nodes(TEXT)))


def test_an_unknown_node_is_an_error_with_a_suggestion() -> None:
    edits: list[Callable[[], str]] = [
        lambda: remove_nodes(TEXT, ["alpah"]),
        lambda: set_drained(TEXT, ["alpah"], drained=True),
    ]
    for edit in edits:
        with pytest.raises(NoSuchNode, match="did you mean 'alpha'"):
            edit()


# --- drain ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  a: {host: h}   # c\n", "  a: {host: h, drained: true}   # c\n"),
        ("  a: {}\n", "  a: {drained: true}\n"),
        ("  a: { host: h, tags: [x] }\n", "  a: { host: h, tags: [x], drained: true }\n"),
        ("  a: {host: h,}\n", "  a: {host: h, drained: true,}\n"),
        ("  a: {host: h, drained: false}\n", "  a: {host: h, drained: true}\n"),
        ("  a:\n", "  a: {drained: true}\n"),
        ("  a:   # nothing\n", "  a: {drained: true}   # nothing\n"),
        ("  a: ~\n", "  a: {drained: true}\n"),
        ("  'a' :\n", "  'a' : {drained: true}\n"),
        ("  a:\n    host: h  # c\n    # d\n", "  a:\n    host: h  # c\n    drained: true\n    # d\n"),
        ("  a:\n     tags:\n     - x\n     - y\n", "  a:\n     tags:\n     - x\n     - y\n     drained: true\n"),
        (
            "  a: {\n    host: h,  # c\n    port: 3\n  }\n",
            "  a: {\n    host: h,  # c\n    port: 3, drained: true\n  }\n",
        ),
        ("  a:\n    {host: h}\n", "  a:\n    {host: h, drained: true}\n"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("rest", ["  b: {}\n", "", "\n# end\n"])
def test_a_node_is_drained_in_the_style_of_its_entry(before: str, after: str, newline: str, rest: str) -> None:
    text = f"nodes:\n  z: {{}}\n{before}{rest}".replace("\n", newline)
    changed = set_drained(text, ["a"], drained=True)
    assert changed == f"nodes:\n  z: {{}}\n{after}{rest}".replace("\n", newline)
    assert nodes(changed)["a"].drained
    assert set_drained(changed, ["a"], drained=True) == changed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  a: {host: h, drained: true}\n", "  a: {host: h}\n"),
        ("  a: {drained: true, host: h}\n", "  a: {host: h}\n"),
        ("  a: {host: h, drained: true, port: 1}\n", "  a: {host: h, port: 1}\n"),
        ("  a: {drained: true}\n", "  a: {}\n"),
        ("  a: {host: h, drained: true,}\n", "  a: {host: h,}\n"),
        ("  a:\n    host: h\n    drained: true   # fan\n    port: 1\n", "  a:\n    host: h\n    port: 1\n"),
        ("  a:\n    drained: true\n    port: 1\n", "  a:\n    port: 1\n"),
        ("  a:\n    drained: true\n", "  a:\n"),
        ("  a: {\n    host: h,  # c\n    drained: true\n  }\n", "  a: {\n    host: h,  # c\n  }\n"),
        (
            "  a: {\n    host: h,\n    drained: true,  # c\n    port: 1}\n",
            "  a: {\n    host: h,\n    # c\n    port: 1}\n",
        ),
        ("  a: {host: h, drained: false}\n", "  a: {host: h, drained: false}\n"),
    ],
)
@pytest.mark.parametrize("rest", ["  b: {}\n", ""])
def test_resuming_a_node_removes_only_drained(before: str, after: str, rest: str) -> None:
    changed = set_drained(f"nodes:\n  z: {{}}\n{before}{rest}", ["a"], drained=False)
    assert changed == f"nodes:\n  z: {{}}\n{after}{rest}"
    assert not nodes(changed)["a"].drained


def test_several_nodes_are_drained_at_once_and_a_range_only_as_a_whole() -> None:
    changed = set_drained(TEXT, ["alpha", "beta", "gamma", "node[01-10]"], drained=True)
    assert all(node.drained for node in nodes(changed).values())
    assert set_drained(changed, list(nodes(TEXT)), drained=False) == TEXT.replace("  gamma:\n", "  gamma: {}\n")
    with pytest.raises(UsageError, match="is a part of the range"):
        set_drained(TEXT, ["node03"], drained=True)


# --- refused edits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes: {a: {}, b: {}}\n", "written in braces"),
        ("{nodes: {a: {}, b: {}}}\n", "written in braces"),
        ("nodes: {\n  a: {},\n  b: {}\n}\n", "written in braces"),
    ],
)
def test_nodes_in_braces_are_refused(text: str, words: str) -> None:
    edits: list[Callable[[], str]] = [
        lambda: add_node(text, "c", {}),
        lambda: remove_nodes(text, ["a"]),
        lambda: set_drained(text, ["a"], drained=True),
    ]
    for edit in edits:
        with pytest.raises(UsageError, match=words) as caught:
            edit()
        assert caught.value.hint == "sshgrid inventory edit"


@pytest.mark.parametrize(
    "text", ["nodes:\n  a: &x {}\n  b: *x\n", "nodes:\n  a: {}\n  a: {}\n", "nodes:\n  a: {hosts: x}\n  b:\n"]
)
def test_a_file_that_is_not_valid_is_not_edited(text: str) -> None:
    with pytest.raises(InventoryError):
        remove_nodes(text, ["a"])


def test_editing_an_entry_that_shares_its_line_is_refused() -> None:
    text = "nodes:\n  ? a\n  : {host: h}\n  ? b\n  : {}\n"
    assert list(nodes(text)) == ["a", "b"]
    edits: list[Callable[[], str]] = [lambda: remove_nodes(text, ["a"]), lambda: add_node(text, "c", {})]
    for edit in edits:
        with pytest.raises(UsageError):
            edit()


def test_a_new_node_is_inserted_before_the_end_of_the_document() -> None:
    text = "---\nnodes:\n  a: {}\n...\n"
    assert add_node(text, "b", {}) == "---\nnodes:\n  a: {}\n  b: {}\n...\n"


# --- properties -------------------------------------------------------------------------------------------------------

NAMES = [f"n{letter}" for letter in string.ascii_lowercase[:8]]
comments = st.sampled_from(
    ["", "  # same", "    # deeper", "# far left", "   ", "  # x: {host: y}", "      # very deep"]
)
values = st.sampled_from(
    [
        "{}",
        "",
        " # odd",
        "{host: h}   # tail",
        "{host: h, tags: [a, b]}",
        "{ port: 3 , }",
        "~",
        "\n    host: h\n    port: 3",
        "\n      tags:\n      - a\n      # in\n      - b  # c",
        "\n    host: >-\n      folded\n    port: 3",
        '\n    host:\n      "h"',
        "{host: h,  # in braces\n    port: 3}",
        "\n    drained: true",
        "{drained: true, host: h}",
        "{host: h, drained: true}",
        "\n    port: 3\n    drained: true  # why\n    host: h",
        "\n    user: |-\n      u\n\n  # after",
    ]
)


@st.composite
def inventories(draw: st.DrawFn) -> str:
    """Files with comments and blank lines everywhere, in both styles, with any line ending."""
    lines = [draw(st.sampled_from(["version: 1", "# top", "defaults: {port: 22}  # d"])), "nodes:  # all"]
    for name in NAMES[: draw(st.integers(1, 4))]:
        lines += draw(st.lists(comments, max_size=2))
        lines.append(f"  {name}: {draw(values)}")
        lines += draw(st.lists(comments, max_size=2))
    lines += draw(st.sampled_from([[], ["placement: pack  # p"], ["retry:", "    retries: 3"], ["...", "# end"]]))
    text = "\n".join(lines) + draw(st.sampled_from(["\n", "", "\n\n"]))
    return text.replace("\n", draw(st.sampled_from(["\n", "\r\n", "\r"])))


@given(
    inventories(), st.sampled_from(["zz", "no", "z[1-3]", "017"]), st.sampled_from([{}, {"host": "x{name}", "port": 3}])
)
def test_adding_and_removing_a_node_restores_the_file_byte_for_byte(
    text: str, name: str, fields: dict[str, object]
) -> None:
    before = nodes(text)
    added = add_node(text, name, fields)
    assert list(nodes(added))[: len(before)] == list(before)
    assert nodes(added).keys() - before.keys() == set(expand(name))
    assert remove_nodes(added, [name]) == text


@given(inventories(), st.data())
def test_removing_a_node_keeps_every_other_node_and_all_lines_outside(text: str, data: st.DataObject) -> None:
    before = nodes(text)
    name = data.draw(st.sampled_from(sorted(before)))
    if len(before) == 1:
        return
    after = remove_nodes(text, [name])
    assert nodes(after) == {key: node for key, node in before.items() if key != name}
    prefix = next(
        index for index in range(len(text) + 1) if text[: index + 1] != after[: index + 1] or index == len(text)
    )
    assert after[prefix:] == text[len(text) - (len(after) - prefix) :]


@given(inventories(), st.data())
def test_draining_changes_one_node_and_resuming_restores_its_values(text: str, data: st.DataObject) -> None:
    before = nodes(text)
    name = data.draw(st.sampled_from(sorted(before)))
    drained = set_drained(text, [name], drained=True)
    resumed = set_drained(drained, [name], drained=False)
    assert {key for key, node in nodes(drained).items() if node.drained} == {
        key for key, node in before.items() if node.drained or key == name
    }
    assert not nodes(resumed)[name].drained
    assert [line.partition("#")[2] for line in drained.splitlines() if "#" in line] == [
        line.partition("#")[2] for line in text.splitlines() if "#" in line
    ]
    assert set_drained(resumed, [name], drained=True) == drained or before[name].drained or f"{name}: {{}}" in resumed
