"""Imports nodes from Ansible inventories (INI and YAML) and from the Host aliases of an ssh_config.

The functions are pure: they turn a text into entries for inventory.yaml, with a note for everything that is not
imported. Notes name variables but never contain their values, because these may be secret.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from sshgrid.errors import UsageError
from sshgrid.inventory.schema import NODE_NAME, WORD
from sshgrid.notation.selectors import MAX_NAMES

MAX_DEPTH = 30

_BUILTIN_GROUPS = ("all", "ungrouped")  # groups that Ansible defines
_FIELDS = {
    "ansible_host": "host",
    "ansible_ssh_host": "host",
    "ansible_port": "port",
    "ansible_ssh_port": "port",
    "ansible_user": "user",
    "ansible_ssh_user": "user",
    "ansible_ssh_private_key_file": "identity_file",
    "ansible_private_key_file": "identity_file",
}
_RANGE = re.compile(r"\[([^\[\]:]*):([^\[\]:]*)(?::([0-9]+))?\]")
_PLAIN_RANGE = re.compile(r"([^\[\]]*)\[([0-9]{1,9}):([0-9]{1,9})\]([^\[\]]*)")
_PORT = re.compile(r"((?:[^:\[\]]|\[[^\]]*\])*):([0-9]{1,5})")
_SECTION = re.compile(r"\[([^\]:]+)(?::(vars|children))?\]\s*(?:#.*)?")
_COMMENTS = ("#", ";")


@dataclass(slots=True)
class Imported:
    """Entries by name, in the order of the file, and notes about what was not imported."""

    nodes: dict[str, dict[str, object]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# --- ssh_config -------------------------------------------------------------------------------------------------------


def from_ssh_config(texts: Iterable[str], pattern: str = "*") -> Imported:
    """An entry for each alias without wildcards that matches `pattern`. All other settings stay in the ssh_config."""
    found = Imported()
    for alias in dict.fromkeys(alias for text in texts for alias in _aliases(text)):
        if any(char in alias for char in "*?!") or not fnmatch.fnmatchcase(alias, pattern):
            continue
        if NODE_NAME.fullmatch(alias) and WORD.fullmatch(alias):
            found.nodes[alias] = {"ssh_config": alias}
        else:
            found.notes.append(f"Host {alias}: not a valid node name")
    return found


def _aliases(text: str) -> Iterator[str]:
    for word, values in ssh_config_lines(text):
        if word == "host":
            yield from values


def ssh_config_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """The keyword in lower case and the words of each line that is not empty or a comment."""
    for line in text.splitlines():
        keyword, *rest = re.split(r"\s*=\s*|\s+", line.strip(), maxsplit=1)
        if keyword and not keyword.startswith("#"):
            yield keyword.lower(), _words("".join(rest))


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # an unmatched quote
        return text.split()


# --- Ansible ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    hosts: dict[str, dict[str, str]] = field(default_factory=dict)  # pattern -> variables
    children: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


Groups = dict[str, _Group]


def from_ansible(text: str, name: str = "") -> Imported:
    """Nodes from hosts, tags from groups, keys from variables. Raises UsageError for a text in another format."""
    return _imported(_read_yaml(text, name) if _is_yaml(text, name) else _read_ini(text, name))


def _is_yaml(text: str, name: str) -> bool:
    if name.endswith((".yml", ".yaml", ".json")):
        return True
    lines = [line.strip() for line in text.splitlines()]
    first = next((line for line in lines if line and not line.startswith(_COMMENTS)), "")
    return first == "---" or (first.endswith(":") and not first.startswith("["))


def _read_ini(text: str, name: str) -> Groups:
    groups: Groups = {"ungrouped": _Group()}
    group, kind = "ungrouped", None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(_COMMENTS):
            continue
        if section := _SECTION.fullmatch(stripped):
            group, kind = section[1].strip(), section[2]
            groups.setdefault(group, _Group())
        else:
            try:
                _ini_line(groups, groups[group], kind, stripped)
            except ValueError as error:
                raise UsageError(f"{name or 'inventory'}:{number}: {error}: {stripped[:60]!r}") from error
    return groups


def _ini_line(groups: Groups, group: _Group, kind: str | None, line: str) -> None:
    if kind == "vars":
        key, equals, value = line.partition("=")
        if not equals:
            raise ValueError("expected KEY=VALUE")
        group.variables[key.strip()] = _unquoted(value.strip())
    elif kind == "children":
        child = shlex.split(line, comments=True)[0]
        groups.setdefault(child, _Group())
        group.children.append(child)
    else:
        pattern, *words = shlex.split(line, comments=True)
        if not all("=" in word for word in words):
            raise ValueError("expected a host, then KEY=VALUE words")
        host = group.hosts.setdefault(pattern, {})
        host.update((key, value) for key, _, value in (word.partition("=") for word in words))


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads every scalar as text, except null and merge keys. A value with a tag (`!vault`) is read as ""."""

    yaml_implicit_resolvers = {
        first: [each for each in resolvers if each[0] in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_multi_constructor("!", lambda loader, suffix, node: "")


def _read_yaml(text: str, name: str) -> Groups:
    try:
        _check_depth(text)
        raw = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{name}: invalid YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{name}: not an Ansible inventory: it has no groups")
    groups: Groups = {}
    waiting: list[tuple[str, Any, int]] = [(str(key), value, 0) for key, value in raw.items()]
    for _ in range(MAX_NAMES):
        if not waiting:
            return groups
        group, value, depth = waiting.pop(0)
        children = _yaml_group(groups.setdefault(group, _Group()), group, value, name)
        if depth > MAX_DEPTH:
            break
        waiting += [(child, fields, depth + 1) for child, fields in children]
    raise UsageError(f"{name}: its groups are nested too deeply")


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 3 * MAX_DEPTH:
            raise yaml.YAMLError("nested too deeply")


def _yaml_group(group: _Group, name: str, value: Any, file: str) -> list[tuple[str, Any]]:
    """Add the hosts and variables to the group; returns its children with their values."""
    fields = _mapping(value, file, name)
    for host, variables in _mapping(fields.get("hosts"), file, name).items():
        known = group.hosts.setdefault(str(host), {})
        known.update({str(key): _scalar(each) for key, each in _mapping(variables, file, str(host)).items()})
    group.variables.update({str(key): _scalar(each) for key, each in _mapping(fields.get("vars"), file, name).items()})
    children = [(str(child), each) for child, each in _mapping(fields.get("children"), file, name).items()]
    group.children += [child for child, _ in children if child not in group.children]
    return children


def _mapping(value: Any, file: str, name: str) -> dict[Any, Any]:
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{file}: not an Ansible inventory: {name!r} must be a mapping")
    return value


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else ""


# --- groups to nodes --------------------------------------------------------------------------------------------------


def _imported(groups: Groups) -> Imported:
    found, order = Imported(), _parents_first(groups)
    patterns = dict.fromkeys(pattern for group in groups.values() for pattern in group.hosts)
    members = {pattern: list(_expanded(pattern)) for pattern in patterns}
    if sum(map(len, members.values())) > MAX_NAMES:
        raise UsageError(f"more than {MAX_NAMES} hosts")
    variables: dict[str, dict[str, str]] = {}
    tags: dict[str, set[str]] = {}
    for group in order:  # children override their parents
        for host in _hosts_below(groups, group, members):
            variables.setdefault(host, {}).update(groups[group].variables)
            tags.setdefault(host, set()).update({group} - set(_BUILTIN_GROUPS))
    for each in groups.values():
        for pattern, host_variables in each.hosts.items():
            for host, port in members[pattern]:
                variables[host].update(({"ansible_port": port} if port else {}) | host_variables)
    unmapped: dict[str, list[str]] = {}
    nodes = {host: _node(host, variables[host], sorted(tags[host]), unmapped) for host in variables}
    found.notes += [f"{text}: {_some_names(hosts)}" for text, hosts in unmapped.items()]
    found.nodes = _with_ranges(nodes, members)
    return found


def _some_names(hosts: Sequence[str]) -> str:
    shown = ", ".join(hosts[:5])
    return shown if len(hosts) <= 5 else f"{shown} and {len(hosts) - 5} more"


def _parents_first(groups: Groups) -> list[str]:
    """The groups with parents before their children, as the deeper group wins in Ansible; each level sorted by name."""
    depth = dict.fromkeys(groups, 1) | {"all": 0}
    for _ in range(MAX_DEPTH):
        deeper = {child: depth[name] + 1 for name in groups for child in groups[name].children if name != "all"}
        changed = {name: level for name, level in deeper.items() if level > depth.get(name, 0)}
        depth |= changed
        if not changed:
            return sorted(groups, key=lambda name: (depth[name], name))
    raise UsageError("the groups contain each other")


def _hosts_below(groups: Groups, top: str, members: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    names, waiting = dict[str, None](), [*groups] if top == "all" else [top]
    while waiting:
        name = waiting.pop()
        if name not in names:
            names[name] = None
            waiting += groups[name].children
    below = (groups[name] for name in groups if name in names)
    return list(dict.fromkeys(host for group in below for pattern in group.hosts for host, _ in members[pattern]))


def _expanded(pattern: str) -> Iterator[tuple[str, str]]:
    """The hosts of a pattern such as `web[01:10].lab:2222`, each with its port or ""."""
    found = _PORT.fullmatch(pattern)
    name, port = (found[1], found[2]) if found else (pattern, "")
    pieces = _RANGE.split(name)
    fixed, ranges = pieces[::4], list(zip(pieces[1::4], pieces[2::4], pieces[3::4], strict=True))
    counted = [_range_values(*each, pattern) for each in ranges]
    for chosen in itertools.islice(itertools.product(*counted), MAX_NAMES + 1):
        yield "".join(itertools.chain.from_iterable(itertools.zip_longest(fixed, chosen, fillvalue=""))), port


def _range_values(first: str, last: str, step: str | None, pattern: str) -> list[str]:
    first = first or "0"
    if first.isdigit() and last.isdigit() and len(last) < 10:
        width = len(first) if first.startswith("0") else 0
        return [
            f"{n:0{width}d}" for n in range(int(first), min(int(last), int(first) + MAX_NAMES) + 1, int(step or 1) or 1)
        ]
    if len(first) == len(last) == 1 and first.isalpha() and last.isalpha():
        return [chr(n) for n in range(ord(first), ord(last) + 1, int(step or 1) or 1)]
    raise UsageError(f"{pattern!r} has an invalid range")


def _node(
    host: str, variables: Mapping[str, str], tags: list[str], unmapped: dict[str, list[str]]
) -> dict[str, object]:
    fields: dict[str, object] = {}
    for key, value in variables.items():
        name = _FIELDS.get(key)
        if key == "ansible_connection" and value in ("local", "ssh", "smart", "paramiko"):
            fields |= {"connection": "local"} if value == "local" else {}
        elif name is None:
            unmapped.setdefault(f"{key} is not supported", []).append(host)
        elif "{{" in value or not value:
            unmapped.setdefault(f"{key} has a value that only Ansible can compute", []).append(host)
        else:
            fields[name] = int(value) if name == "port" and value.isdigit() else value
    if "connection" in fields:
        fields = {"connection": "local"}
    elif "host" not in fields:
        fields = {"host": host, **fields}
    valid_tags = [tag for tag in tags if WORD.fullmatch(tag)]
    for tag in set(tags).difference(valid_tags):
        unmapped.setdefault(f"the group {tag!r} is not a valid tag", []).append(host)
    return {**fields, **({"tags": valid_tags} if valid_tags else {})}


def _with_ranges(
    nodes: Mapping[str, dict[str, object]], members: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, dict[str, object]]:
    """Entries in which a range is one entry if all its nodes have the same fields."""
    left, entries = dict(nodes), dict[str, dict[str, object]]()
    for pattern, hosts in members.items():
        found = _PORT.fullmatch(pattern)
        plain = _PLAIN_RANGE.fullmatch(found[1] if found else pattern)
        names = [host for host, _ in hosts]
        rests = [{key: value for key, value in nodes[name].items() if key != "host"} for name in names]
        equal = all(nodes[name].get("host") == name for name in names) and all(rest == rests[0] for rest in rests)
        if plain and len(names) > 1 and equal and all(name in left for name in names):
            entries[f"{plain[1]}[{plain[2]}-{plain[3]}]{plain[4]}"] = {"host": "{name}", **rests[0]}
        else:
            entries |= {name: left[name] for name in names if name in left}
        for name in names:
            left.pop(name, None)
    return entries
