"""Reads inventory.yaml, the list of nodes, into an `Inventory`.

`parse` is pure; `load` reads the file. Unknown keys, duplicates and contradictions are errors. An InventoryError has
all errors of the file, each with its line and column. An Inventory is always valid.
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

# The path of the value, whether its key is meant, and the message.
Violation: TypeAlias = tuple[inventory_text.Path, bool, str]


def load(path: Path) -> Inventory:
    """Read and parse the file. Raises InventoryError when it is missing, unreadable or invalid."""
    return parse(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """The first MAX_BYTES + 1 bytes of a regular file. Raises InventoryError, also for a pipe, which could block."""
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
    """The inventory in `text`. Raises InventoryError with all errors, as file:line:column."""
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
    """The tree with its places, and the valid document. Raises InventoryError."""
    decoded, problems = inventory_text.decode(text)
    if problems:
        raise _error(problems, path, decoded)
    tree, problems = inventory_text.read(decoded)
    if tree is None:
        raise _error(problems or [Problem(0, 0, "the file is empty; it needs `nodes:`")], path, decoded)
    document, violations = _validate(inventory_text.plain(tree))
    taken = {(problem.line, problem.column) for problem in problems}  # one error for each place is enough
    located = _locate(violations, tree, decoded)
    problems += [problem for problem in located if (problem.line, problem.column) not in taken]
    if problems or document is None:
        raise _error(problems, path, decoded)
    return tree, document


def _error(problems: list[Problem], path: str, text: Text) -> InventoryError:
    return InventoryError(inventory_text.render(problems, path, text), HINT)


def _validate(raw: object) -> tuple[Document | None, list[Violation]]:
    found = list(_cross_checks(raw)) if isinstance(raw, dict) else []
    try:
        return Document.model_validate(raw), found
    except ValidationError as error:
        return None, [*inventory_schema.violations(error), *found]


def _locate(violations: list[Violation], tree: Tree, text: Text) -> list[Problem]:
    if not violations:
        return []
    known = dict(inventory_text.places(tree))
    return [text.problem(_offset(known, path, of_key), message) for path, of_key, message in violations]


def _offset(known: Mapping[inventory_text.Path, Position], path: inventory_text.Path, of_key: bool) -> int:
    """The place of the path, or of the nearest path above it: a missing key has no place."""
    has_place = path in known
    while path not in known:
        path = path[:-1]
    return known[path].key if of_key or not has_place else known[path].value


# --- checks of several values -----------------------------------------------------------------------------------------


def _cross_checks(raw: dict[str, Any]) -> Iterator[Violation]:
    """Checks on plain values, so that they also run when the document violates the schema."""
    nodes = _mapping(raw.get("nodes"))
    defaults = _mapping(raw.get("defaults"))
    languages = _mapping(raw.get("toolchains"))
    yield from _duplicate_nodes(nodes)
    yield from _incomplete_languages(languages)
    known = {language.name for language in LANGUAGES} | languages.keys()
    yield from _unknown_toolchains(("defaults",), defaults, known)
    yield from _conflicting_keys(("defaults",), defaults, defaults)
    yield from _group_violations(_mapping(raw.get("groups")), nodes, defaults, known)
    for name, value in nodes.items():
        fields = _mapping(value)
        yield from _unknown_toolchains(("nodes", name), fields, known)
        yield from _conflicting_keys(("nodes", name), fields, defaults)
        yield from _shared_hosts(name, fields, defaults)


def _group_violations(
    groups: dict[str, Any], nodes: dict[str, Any], defaults: dict[str, Any], known: set[str]
) -> Iterator[Violation]:
    known_nodes = {name for entry in nodes for name in _expanded(entry)}
    for group, value in groups.items():
        fields = _mapping(value)
        yield from _unknown_toolchains(("groups", group), fields, known)
        yield from _conflicting_keys(("groups", group), fields, defaults)
        members = fields.get("nodes")
        for number, pattern in enumerate(members if isinstance(members, list) else ()):
            names = _expanded(pattern) if isinstance(pattern, str) else ()
            missing = next((name for name in names if name not in known_nodes), None)
            if missing is not None:
                message = f"unknown node {missing!r}{did_you_mean(missing, known_nodes)}"
                yield ("groups", group, "nodes", number), False, message


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _duplicate_nodes(nodes: dict[str, Any]) -> Iterator[Violation]:
    entry_of: dict[str, str] = {}
    total = 0
    for entry in nodes:
        names = _expanded(entry)
        total += len(names)
        if total > MAX_NAMES:
            yield ("nodes", entry), True, f"more than {MAX_NAMES} nodes"
            return
        counts = Counter(names)
        duplicate = next((name for name in names if name in entry_of or counts[name] > 1), None)
        if duplicate is not None:
            yield (
                ("nodes", entry),
                True,
                f"the node {duplicate!r} is already defined by {entry_of.get(duplicate, entry)!r}",
            )
        entry_of.update(dict.fromkeys(names, entry))


def _expanded(entry: str) -> tuple[str, ...]:
    try:
        return expand(entry)
    except UsageError:
        return ()  # the schema reports the error


def _incomplete_languages(languages: dict[str, Any]) -> Iterator[Violation]:
    builtin = {language.name for language in LANGUAGES}
    for name, fields in languages.items():
        if name not in builtin and isinstance(fields, dict):
            missing = [key for key in ("match", "run") if key not in fields]
            if missing:
                keys = f"the key{'s' if len(missing) > 1 else ''} {' and '.join(map(repr, missing))}"
                message = f"the new language {name!r} needs {keys}{did_you_mean(name, builtin)}"
                yield ("toolchains", name), True, message


def _unknown_toolchains(path: inventory_text.Path, fields: dict[str, Any], known: set[str]) -> Iterator[Violation]:
    listed = fields.get("toolchains")
    for number, name in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(name, str) and name not in known:
            message = f"unknown language {name!r}{did_you_mean(name, known)}"
            yield (*path, "toolchains", number), False, message


_SSH_KEYS = ("host", "ssh_config", "port", "user", "identity_file", "known_hosts")


def _conflicting_keys(
    path: inventory_text.Path, fields: dict[str, Any], defaults: dict[str, Any]
) -> Iterator[Violation]:
    if "host" in fields and "ssh_config" in fields:
        yield (*path, "ssh_config"), True, "'host' and 'ssh_config' cannot be used together; remove one of them"
    if fields.get("connection", defaults.get("connection")) == "local":
        for key in _SSH_KEYS:
            if key in fields and fields is not defaults:
                yield (*path, key), True, f"{key!r} has no effect with `connection: local`; remove it"


def _shared_hosts(name: str, fields: dict[str, Any], defaults: dict[str, Any]) -> Iterator[Violation]:
    if len(_expanded(name)) < 2:
        return
    for key in ("host", "ssh_config"):
        value = fields.get(key)
        if isinstance(value, str) and "{" not in value:
            message = (
                f'all nodes of {name!r} would have the same {key} {value!r}; use a template such as "{{name}}.lab"'
            )
            yield ("nodes", name, key), False, message


# --- from the valid document to values of the model -------------------------------------------------------------------

_FIELD_NAMES = {"connect_timeout": "connect_timeout_seconds"}
_TEMPLATES = ("host", "ssh_config", "identity_file", "known_hosts", "workdir")


def _nodes(document: Document) -> tuple[Node, ...]:
    defaults = document.defaults.set_values()
    groups = [(group.name, group.nodes, document.groups[group.name].shared()) for group in _groups(document)]
    return tuple(
        _node(name, _with_groups(defaults, groups, name, entry))
        for pattern, entry in document.nodes.items()
        for name in expand(pattern)
    )


def _groups(document: Document) -> tuple[Group, ...]:
    return tuple(
        Group(name, frozenset(node for pattern in entry.nodes for node in expand(pattern)), entry.max_jobs_per_user)
        for name, entry in document.groups.items()
    )


def _with_groups(
    defaults: dict[str, Any], groups: list[tuple[str, frozenset[str], dict[str, Any]]], name: str, entry: NodeFields
) -> dict[str, Any]:
    """The fields of a node. The node overrides its groups, the last group first, and they override the defaults.

    The tags of the node and of its groups are joined.
    """
    node_groups = [(group, shared) for group, nodes, shared in groups if name in nodes]
    common = defaults
    for _, shared in node_groups:
        common = _override(common, shared)
    fields = _effective_fields(common, entry)
    if node_groups:
        shared_tags = [tag for _, shared in node_groups for tag in shared.get("tags", ())]
        node_tags = entry.tags if "tags" in entry.model_fields_set else defaults.get("tags", ())
        fields["tags"] = [*node_tags, *shared_tags, *(group for group, _ in node_groups)]
    return fields


def _override(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` overrides `defaults`; a `host` also replaces an `ssh_config`, and the reverse."""
    fields = defaults | own
    if "host" in own:
        fields.pop("ssh_config", None)
    if "ssh_config" in own:
        fields.pop("host", None)
    return fields


def _effective_fields(defaults: dict[str, Any], entry: NodeFields) -> dict[str, Any]:
    fields = _override(defaults, entry.set_values())
    if fields.get("connection") == "local":
        return {key: value for key, value in fields.items() if key not in _SSH_KEYS}
    return fields if "ssh_config" in fields else {"host": "{name}", **fields}


def _node(name: str, fields: dict[str, Any]) -> Node:
    named: dict[str, Any] = {_FIELD_NAMES.get(key, key): value for key, value in fields.items()}
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
    fields = entry.set_values()
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


# --- back to text -----------------------------------------------------------------------------------------------------


def show(inventory: Inventory) -> dict[str, object]:
    """The inventory with all defaults, as plain values for --json. Times are in seconds."""
    return {
        "schema": 1,
        "path": inventory.path,
        "digest": inventory.digest,
        "nodes": [_as_builtins(node) for node in inventory.nodes],
        "languages": [_as_builtins(language) for language in inventory.languages],
        "groups": [_as_builtins(group) for group in inventory.groups],
        "placement": inventory.placement,
        "retry": _as_builtins(inventory.retry),
        "queue": "sqlite",
    }


def _as_builtins(value: Struct) -> dict[str, object]:
    builtins: dict[str, object] = msgspec.to_builtins(value, order="sorted")
    return builtins


def show_yaml(inventory: Inventory) -> str:
    """The inventory with all defaults, as YAML with one line for each node. It parses to an equal inventory."""
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
        "connect_timeout": f"{repr(node.connect_timeout_seconds).removesuffix('.0')}s",  # exact, unlike format_duration
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
