"""inventory.yaml -> Inventory: which machines there are and how to reach them, with every error of the file at once.

`parse` is pure; `load` is the one place that reads the file. Refuses what is unknown, said twice or contradicts itself,
and never guesses: an Inventory that exists is fit for use.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from pydantic import ValidationError

from sshgrid.errors import InventoryError, UsageError
from sshgrid.inventory import schema as inventory_schema
from sshgrid.inventory import text as inventory_text
from sshgrid.inventory.schema import Document, LanguageFields, NodeFields, json_schema
from sshgrid.inventory.text import MAX_BYTES, Position, Problem, Text, Tree, emit
from sshgrid.model import Group, Inventory, Language, Node, RetryPolicy, Struct
from sshgrid.notation.quantities import format_duration
from sshgrid.notation.selectors import MAX_NAMES, did_you_mean, expand
from sshgrid.toolchains import LANGUAGES

__all__ = ["Inventory", "json_schema", "load", "parse", "show", "show_yaml"]

HINT = "sshgrid inventory check"

Complaint: TypeAlias = tuple[inventory_text.Path, bool, str]  # about what, about its key?, a sentence


def load(path: Path) -> Inventory:
    """Read and parse. InventoryError for whatever is wrong with the file, be it missing or malformed."""
    return parse(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """The bytes of the file, at most one more than allowed. Only a regular file: a pipe could block for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InventoryError(f"{path}: not a regular file", HINT)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise InventoryError(f"{path}: no such file", "sshgrid node add NAME HOST") from error
    except OSError as error:
        raise InventoryError(f"{path}: {error.strerror}", HINT) from error


def parse(text: bytes, path: str) -> Inventory:
    """The inventory that `text` describes. InventoryError carries every error, as file:line:column."""
    _, document = read(text, path)
    return Inventory(
        path=path,
        nodes=_nodes(document),
        languages=_languages(document),
        placement=document.placement,
        retry=_retry(document),
        digest=hashlib.sha256(text).hexdigest(),
        groups=_groups(document),
    )


def read(text: bytes, path: str) -> tuple[Tree, Document]:
    """The tree with its places, and the valid document in it."""
    decoded, problems = inventory_text.decode(text)
    if problems:
        raise _refusal(problems, path, decoded)
    tree, problems = inventory_text.read(decoded)
    if tree is None:
        raise _refusal(problems or [Problem(0, 0, "the file is empty; it needs `nodes:`")], path, decoded)
    document, complaints = _validate(inventory_text.plain(tree))
    taken = {(problem.line, problem.column) for problem in problems}  # what is no YAML for us needs no second error
    located = _locate(complaints, tree, decoded)
    problems += [problem for problem in located if (problem.line, problem.column) not in taken]
    if problems or document is None:
        raise _refusal(problems, path, decoded)
    return tree, document


def _refusal(problems: list[Problem], path: str, text: Text) -> InventoryError:
    return InventoryError(inventory_text.render(problems, path, text), HINT)


def _validate(raw: object) -> tuple[Document | None, list[Complaint]]:
    found = list(_contradictions(raw)) if isinstance(raw, dict) else []
    try:
        return Document.model_validate(raw), found
    except ValidationError as error:
        return None, [*inventory_schema.complaints(error), *found]


def _locate(complaints: list[Complaint], tree: Tree, text: Text) -> list[Problem]:
    if not complaints:
        return []
    known = dict(inventory_text.places(tree))
    return [text.problem(_offset(known, path, of_key), message) for path, of_key, message in complaints]


def _offset(known: Mapping[inventory_text.Path, Position], path: inventory_text.Path, of_key: bool) -> int:
    """The nearest place there is: what is missing, or inside a value that is read as a whole, has none of its own."""
    whole = path in known
    while path not in known:
        path = path[:-1]
    return known[path].key if of_key or not whole else known[path].value


# --- what no single value can know ------------------------------------------------------------------------------------


def _contradictions(raw: dict[str, Any]) -> Iterator[Complaint]:
    """On the plain values, so that they are found even where the schema has complaints of its own."""
    nodes = _mapping(raw.get("nodes"))
    defaults = _mapping(raw.get("defaults"))
    languages = _mapping(raw.get("toolchains"))
    yield from _names_twice(nodes)
    yield from _incomplete_languages(languages)
    known = {language.name for language in LANGUAGES} | languages.keys()
    yield from _unknown_toolchains(("defaults",), defaults, known)
    yield from _two_roads(("defaults",), defaults, defaults)
    yield from _group_complaints(_mapping(raw.get("groups")), nodes, defaults, known)
    for name, value in nodes.items():
        fields = _mapping(value)
        yield from _unknown_toolchains(("nodes", name), fields, known)
        yield from _two_roads(("nodes", name), fields, defaults)
        yield from _one_host_for_many(name, fields, defaults)


def _group_complaints(
    groups: dict[str, Any], nodes: dict[str, Any], defaults: dict[str, Any], known: set[str]
) -> Iterator[Complaint]:
    there = {name for entry in nodes for name in _expanded(entry)}
    for group, value in groups.items():
        fields = _mapping(value)
        yield from _unknown_toolchains(("groups", group), fields, known)
        yield from _two_roads(("groups", group), fields, defaults)
        members = fields.get("nodes")
        for number, pattern in enumerate(members if isinstance(members, list) else ()):
            names = _expanded(pattern) if isinstance(pattern, str) else ()
            missing = next((name for name in names if name not in there), None)
            if missing is not None:
                message = f"there is no node {missing!r}{did_you_mean(missing, there)}"
                yield ("groups", group, "nodes", number), False, message


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _names_twice(nodes: dict[str, Any]) -> Iterator[Complaint]:
    owner: dict[str, str] = {}
    total = 0
    for entry in nodes:
        names = _expanded(entry)
        total += len(names)
        if total > MAX_NAMES:
            yield ("nodes", entry), True, f"more than {MAX_NAMES} nodes"
            return
        counts = Counter(names)
        twice = next((name for name in names if name in owner or counts[name] > 1), None)
        if twice is not None:
            yield ("nodes", entry), True, f"the node {twice!r} is already in {owner.get(twice, entry)!r}"
        owner.update(dict.fromkeys(names, entry))


def _expanded(entry: str) -> tuple[str, ...]:
    try:
        return expand(entry)
    except UsageError:
        return ()  # the schema says what is wrong with it


def _incomplete_languages(languages: dict[str, Any]) -> Iterator[Complaint]:
    builtin = {language.name for language in LANGUAGES}
    for name, fields in languages.items():
        if name not in builtin and isinstance(fields, dict):
            missing = [key for key in ("match", "run") if key not in fields]
            if missing:
                words = " and ".join(map(repr, missing))
                message = f"a language of your own needs {words}{did_you_mean(name, builtin)}"
                yield ("toolchains", name), True, message


def _unknown_toolchains(path: inventory_text.Path, fields: dict[str, Any], known: set[str]) -> Iterator[Complaint]:
    wanted = fields.get("toolchains")
    for number, name in enumerate(wanted if isinstance(wanted, list) else ()):
        if isinstance(name, str) and name not in known:
            message = f"no language is called {name!r}{did_you_mean(name, known)}"
            yield (*path, "toolchains", number), False, message


_REMOTE_ONLY = ("host", "ssh_config", "port", "user", "identity_file", "known_hosts")


def _two_roads(path: inventory_text.Path, fields: dict[str, Any], defaults: dict[str, Any]) -> Iterator[Complaint]:
    if "host" in fields and "ssh_config" in fields:
        yield (*path, "ssh_config"), True, "`host` and `ssh_config` exclude each other; keep one"
    if fields.get("connection", defaults.get("connection")) == "local":
        for key in _REMOTE_ONLY:
            if key in fields and fields is not defaults:
                yield (*path, key), True, f"{key!r} means nothing with `connection: local`"


def _one_host_for_many(name: str, fields: dict[str, Any], defaults: dict[str, Any]) -> Iterator[Complaint]:
    if len(_expanded(name)) < 2:
        return
    for key in ("host", "ssh_config"):
        value = fields.get(key)
        if isinstance(value, str) and "{" not in value:
            message = f'all nodes of {name!r} would be the one host {value!r}; write for example "{{name}}.lab"'
            yield ("nodes", name, key), False, message


# --- the valid document to nouns --------------------------------------------------------------------------------------

_RENAMED = {"connect_timeout": "connect_timeout_seconds"}
_TEMPLATES = ("host", "ssh_config", "identity_file", "known_hosts", "workdir")


def _nodes(document: Document) -> tuple[Node, ...]:
    defaults = document.defaults.written()
    groups = [(group.name, group.nodes, document.groups[group.name].shared()) for group in _groups(document)]
    return tuple(
        _node(name, _grouped(defaults, groups, name, entry))
        for pattern, entry in document.nodes.items()
        for name in expand(pattern)
    )


def _groups(document: Document) -> tuple[Group, ...]:
    return tuple(
        Group(name, frozenset(node for pattern in entry.nodes for node in expand(pattern)), entry.max_jobs_per_user)
        for name, entry in document.groups.items()
    )


def _grouped(
    defaults: dict[str, Any], groups: list[tuple[str, frozenset[str], dict[str, Any]]], name: str, entry: NodeFields
) -> dict[str, Any]:
    """What holds for a node: the later group wins, and the node's own words over all. Tags come together."""
    own = [(group, shared) for group, nodes, shared in groups if name in nodes]
    common = defaults
    for _, shared in own:
        common = _over(common, shared)
    fields = _effective(common, entry)
    if own:
        shared_tags = [tag for _, shared in own for tag in shared.get("tags", ())]
        mine = entry.tags if "tags" in entry.model_fields_set else defaults.get("tags", ())
        fields["tags"] = [*mine, *shared_tags, *(group for group, _ in own)]
    return fields


def _over(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` before `defaults`; of the two ways to say where a node is, the nearer one counts."""
    fields = defaults | own
    if "host" in own:
        fields.pop("ssh_config", None)
    if "ssh_config" in own:
        fields.pop("host", None)
    return fields


def _effective(defaults: dict[str, Any], entry: NodeFields) -> dict[str, Any]:
    fields = _over(defaults, entry.written())
    if fields.get("connection") == "local":
        return {key: value for key, value in fields.items() if key not in _REMOTE_ONLY}
    return fields if "ssh_config" in fields else {"host": "{name}", **fields}


def _node(name: str, fields: dict[str, Any]) -> Node:
    named: dict[str, Any] = {_RENAMED.get(key, key): value for key, value in fields.items()}
    for key in _TEMPLATES:
        if key in named:
            named[key] = named[key].replace("{name}", name)
    for key in ("tags", "toolchains"):
        if key in named:
            named[key] = frozenset(named[key])
    return Node(name=name, **named)


def _languages(document: Document) -> tuple[Language, ...]:
    table = {language.name: language for language in LANGUAGES}
    for name, entry in document.toolchains.items():
        table[name] = _language(name, entry, table.get(name))
    return tuple(table.values())


def _language(name: str, entry: LanguageFields, base: Language | None) -> Language:
    fields = entry.written()
    if "probe" in fields:
        fields["version"] = fields.pop("probe")
    for key in ("match", "interpreters"):
        if key in fields:
            fields[key] = tuple(fields[key])
    return msgspec.structs.replace(base, **fields) if base else Language(name=name, **fields)


def _retry(document: Document) -> RetryPolicy:
    retry = document.retry
    return RetryPolicy(
        retries=retry.retries,
        backoff_seconds=retry.backoff,
        backoff_max_seconds=max(retry.backoff_max, retry.backoff),
        patience_min_seconds=retry.patience[0],
        patience_max_seconds=retry.patience[1],
    )


# --- and back: what is in force ---------------------------------------------------------------------------------------


def show(inventory: Inventory) -> dict[str, object]:
    """Everything in force, as plain values for --json: times in seconds, the keys of the nouns."""
    return {
        "schema": 1,
        "path": inventory.path,
        "digest": inventory.digest,
        "nodes": [_plain(node) for node in inventory.nodes],
        "languages": [_plain(language) for language in inventory.languages],
        "groups": [_plain(group) for group in inventory.groups],
        "placement": inventory.placement,
        "retry": _plain(inventory.retry),
        "queue": "sqlite",
    }


def _plain(noun: Struct) -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(noun, order="sorted")
    return plain


def show_yaml(inventory: Inventory) -> str:
    """Everything in force as an inventory again, a line a node: parsing it gives the same nodes and languages."""
    changed = [language for language in inventory.languages if language not in LANGUAGES]
    lines = ["version: 1"]
    if changed:
        lines += ["toolchains:", *(f"  {emit(row.name)}: {emit(_language_fields(row))}" for row in changed)]
    lines += ["nodes:", *(f"  {emit(node.name)}: {emit(_node_fields(node))}" for node in inventory.nodes)]
    if inventory.groups:
        lines += ["groups:", *(f"  {emit(group.name)}: {emit(_group_fields(group))}" for group in inventory.groups)]
    lines += [
        f"placement: {inventory.placement}",
        f"retry: {emit(_retry_fields(inventory.retry))}",
        "queue: sqlite",
        "",
    ]
    return "\n".join(lines)


def _node_fields(node: Node) -> dict[str, object]:
    local = node.connection == "local"
    fields: dict[str, object] = {
        "connection": "local" if local else None,
        "host": node.host or None,
        "ssh_config": node.ssh_config,
        "port": node.port,
        "user": node.user,
        "identity_file": node.identity_file,
        "known_hosts": node.known_hosts,
        "slots": "auto" if node.slots is None else node.slots,
        "gpus": node.gpus,
        "weight": node.weight,
        "tags": sorted(node.tags),
        "toolchains": None if node.toolchains is None else sorted(node.toolchains),
        "max_load": node.max_load,
        "workdir": node.workdir,
        "connect_timeout": node.connect_timeout_seconds,
        "drained": node.drained or None,
        "shared_builds": None if node.shared_builds else False,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _group_fields(group: Group) -> dict[str, object]:
    fields: dict[str, object] = {"nodes": sorted(group.nodes)}
    return fields if group.max_jobs_per_user is None else fields | {"max_jobs_per_user": group.max_jobs_per_user}


def _language_fields(language: Language) -> dict[str, object]:
    fields: dict[str, object] = {
        "match": language.match,
        "compile": language.compile,
        "run": language.run,
        "probe": language.version,
        "interpreters": language.interpreters,
        "hello": language.hello,
        "portable": language.portable,
    }
    return {key: value for key, value in fields.items() if value}


def _retry_fields(retry: RetryPolicy) -> dict[str, object]:
    return {
        "retries": retry.retries,
        "backoff": format_duration(retry.backoff_seconds),
        "backoff_max": format_duration(retry.backoff_max_seconds),
        "patience": [format_duration(retry.patience_min_seconds), format_duration(retry.patience_max_seconds)],
    }
