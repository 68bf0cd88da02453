"""The schema of the inventory: its keys, their values, and the message for each violation.

Validation and the JSON Schema for editors both come from these models. Numbers in place of text, names that ssh could
read as an option, and keys for secrets are violations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from sshgrid.errors import UsageError
from sshgrid.inventory.text import Path
from sshgrid.notation.quantities import format_duration, parse_duration
from sshgrid.notation.selectors import did_you_mean, expand

WORD = re.compile(r"(?!-)[A-Za-z0-9._:-]{1,253}", re.ASCII)
NODE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,252}", re.ASCII)
_LANGUAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._+#-]{0,63}", re.ASCII)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_COMMAND_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_COMMAND_WORDS = ("src", "srcs", "exe", "out", "main", "dir", "flags", "args")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _violation(message: str) -> PydanticCustomError:
    return PydanticCustomError("violation", "{message}", {"message": message})


# --- values -----------------------------------------------------------------------------------------------------------


def _word(text: str) -> str:
    if not WORD.fullmatch(text):
        raise _violation(
            f"{json.dumps(text)} is not a valid name; use letters, digits and . _ : -, not starting with -"
        )
    return text


def _template(text: str, known: tuple[str, ...] = ("name",)) -> str:
    """The text with an x for each placeholder. Raises for an unknown placeholder."""
    for found in _PLACEHOLDER.finditer(text):
        if found[1] not in known:
            options = " or ".join(f"{{{name}}}" for name in known)
            raise _violation(f"unknown placeholder {found[0]}; use {options}")
    return _PLACEHOLDER.sub("x", text)


def _host(text: str) -> str:
    bare = _template(text)
    if "@" in bare and WORD.fullmatch(bare.replace("@", "")):
        raise _violation(f"{json.dumps(text)} is not a valid host; write the user in the key 'user'")
    if bare.count(":") == 1:
        raise _violation(f"{json.dumps(text)} is not a valid host; write the port in the key 'port'")
    if not WORD.fullmatch(bare):
        raise _violation(
            f"{json.dumps(text)} is not a valid host; use letters, digits and . _ : -, not starting with -"
        )
    return text


def _alias(text: str) -> str:
    _word(_template(text))
    return text


def _file(text: str) -> str:
    bare = _template(text)
    if not bare or bare.startswith("-") or _CONTROL.search(bare):
        raise _violation(f"{json.dumps(text)} is not a valid path")
    return text


def _workdir(text: str) -> str:
    bare = _template(text, ("uid", "name"))
    if not bare.startswith("/") or _CONTROL.search(bare) or {".", ".."} & set(bare.split("/")) or not bare.strip("/"):
        raise _violation(f"{json.dumps(text)} is not an absolute path such as /var/tmp/sshgrid-{{uid}}")
    return text


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _violation(f"must be a duration such as 10s, not {_value_text(value)}")
    try:
        return parse_duration(str(value))
    except UsageError as error:
        raise _violation(f"{error.message}; {error.hint}") from error


def _timeout(seconds: float) -> float:
    if not 0.1 <= seconds <= 3600:
        raise _violation(f"must be between 100ms and 1h, not {format_duration(seconds)}")
    return seconds


def _slots(value: object) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _violation(f"must be auto or a whole number, not {_value_text(value)}")
    if not 1 <= value <= 10_000:
        hint = "; with `drained: true` a node starts no jobs" if value == 0 else ""
        raise _violation(f"must be between 1 and 10000, not {value}{hint}")
    return value


_PERCENT = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,4})?) ?%", re.ASCII)


def _share(value: object) -> float:
    """A share such as 80% or 0.8. A number above 10 is an error, because it is probably a percentage."""
    percent = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, bool) or not (percent or isinstance(value, int | float)):
        raise _violation(f"must be a share of the cores such as 80% or 0.8, not {_value_text(value)}")
    share = float(percent[1]) / 100 if percent else float(str(value))
    if not 0 < share <= 10:
        hint = f"; did you mean {value}%?" if isinstance(value, int) and 10 < value <= 1000 else ""
        raise _violation(f"must be above 0% and at most 1000% of the cores, not {value}{hint}")
    return share


def _weight(value: float) -> float:
    if not 0 < value <= 1000:
        raise _violation(f"must be above 0 and at most 1000, not {value:g}")
    return value


def _node_pattern(text: str) -> str:
    try:
        names = expand(text)
    except UsageError as error:
        raise _violation(f"{error.message}; {error.hint}" if error.hint else error.message) from error
    if not NODE_NAME.fullmatch(names[0]):
        raise _violation(
            f"{json.dumps(text)} is not a valid node name; use letters, digits and . _ : -, starting with a letter, a"
            " digit or _"
        )
    return text


def _language_name(text: str) -> str:
    if not _LANGUAGE_NAME.fullmatch(text):
        raise _violation(
            f"{json.dumps(text)} is not a valid language name; use letters, digits and . _ + # -, first a letter"
        )
    return text


def _glob(text: str) -> str:
    if not text or "/" in text or _CONTROL.search(text):
        raise _violation(f"{json.dumps(text)} is not a pattern for file names such as *.cob")
    return text


def _argv(value: object) -> tuple[str, ...]:
    """A command as a list of words. A shell string is an error."""
    if isinstance(value, str):
        raise _violation(f"must be a list of words, not a shell command; write {emit_words(value)}")
    if not isinstance(value, list) or not value:
        raise _violation(f"must be a list of words, not {'an empty list' if value == [] else _value_text(value)}")
    for word in value:
        _command_word(word)
    return tuple(value)


def emit_words(command: str) -> str:
    """A shell command as a list of words in YAML, for an error message."""
    return (
        "[" + ", ".join(json.dumps(word) if re.search(r"[{},\[\]]", word) else word for word in command.split()) + "]"
    )


def _command_word(word: object) -> None:
    if not isinstance(word, str):
        raise _violation(f"must have only text as words, not {_value_text(word)}; write it in quotes")
    if not word or "\0" in word:
        raise _violation("must not have an empty word")
    for found in _COMMAND_PLACEHOLDER.finditer(word):
        if found[1] not in _COMMAND_WORDS:
            hint = did_you_mean(found[1], _COMMAND_WORDS)
            raise _violation(f"unknown placeholder {found[0]}{hint}")
        if found[1] in ("args", "flags") and word != found[0]:
            raise _violation(f"the placeholder {found[0]} must be a separate word, not a part of {json.dumps(word)}")


def _argvs(value: object) -> tuple[tuple[str, ...], ...]:
    """One command, or a list of commands in order. An empty list means that nothing is compiled."""
    if isinstance(value, list) and all(isinstance(command, list) for command in value):
        return tuple(_argv(command) for command in value)
    return (_argv(value),)


def _queue(value: object) -> str:
    if isinstance(value, str) and value.startswith(("postgresql:", "postgres:")):
        raise _violation("must be sqlite: a postgresql queue is not supported")
    if value != "sqlite":
        raise _violation(f"must be sqlite, not {_value_text(value)}")
    return "sqlite"


def _none_as_empty(value: object) -> object:
    """Read a key without a value as an empty mapping: `alpha:` is a node with all defaults."""
    return {} if value is None else value


def _patience(seconds: list[float]) -> list[float]:
    if len(seconds) != 2 or seconds[0] > seconds[1]:
        raise _violation("must be a list of the shortest and the longest wait, such as [10s, 10m]")
    return seconds


def _schema(kind: str | list[str], **more: object) -> WithJsonSchema:
    return WithJsonSchema({"type": kind, **more})


_WORD_PATTERN = r"^(?!-)[A-Za-z0-9._:-]{1,253}$"
_TEMPLATE_PATTERN = r"^(?!-)[A-Za-z0-9._:{}-]{1,253}$"
_WORDS: dict[str, Any] = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}

Word = Annotated[str, AfterValidator(_word), _schema("string", pattern=_WORD_PATTERN)]
Host = Annotated[str, AfterValidator(_host), _schema("string", pattern=_TEMPLATE_PATTERN)]
Alias = Annotated[str, AfterValidator(_alias), _schema("string", pattern=_TEMPLATE_PATTERN)]
File = Annotated[str, AfterValidator(_file), _schema("string", pattern="^[^-]")]
Workdir = Annotated[str, AfterValidator(_workdir), _schema("string", pattern="^/.")]
Glob = Annotated[str, AfterValidator(_glob), _schema("string", pattern="^[^/]+$")]
LanguageName = Annotated[str, AfterValidator(_language_name), _schema("string")]
NodePattern = Annotated[str, AfterValidator(_node_pattern), _schema("string")]
Duration = Annotated[
    float, BeforeValidator(_duration), _schema(["string", "number"], pattern="^([0-9.]+(ms|s|m|h|d)?)+$", minimum=0)
]
Timeout = Annotated[Duration, AfterValidator(_timeout)]
Slots = Annotated[
    int | None,
    BeforeValidator(_slots),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 10_000}]}),
]
Share = Annotated[
    float,
    BeforeValidator(_share),
    _schema(["string", "number"], pattern="^[0-9.]+ ?%$", exclusiveMinimum=0, maximum=10),
]
Weight = Annotated[float, AfterValidator(_weight), _schema("number", exclusiveMinimum=0, maximum=1000)]
Argv = Annotated[tuple[str, ...], BeforeValidator(_argv), WithJsonSchema(_WORDS)]
Argvs = Annotated[
    tuple[tuple[str, ...], ...],
    BeforeValidator(_argvs),
    WithJsonSchema({"anyOf": [_WORDS, {"type": "array", "items": _WORDS}]}),
]
Queue = Annotated[str, BeforeValidator(_queue), WithJsonSchema({"const": "sqlite"})]


# --- the file ---------------------------------------------------------------------------------------------------------


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def set_values(self) -> dict[str, Any]:
        """The values that the file sets. The other ones come from `defaults`, then from model.Node."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


class Defaults(_Model):
    """The values of every node that does not set its own."""

    host: Host = Field(default="", description="name or address; default: {name}, the name of the node")
    ssh_config: Alias = Field(default="", description="a Host alias of your ssh_config, instead of `host`")
    connection: Literal["ssh", "local"] = Field(default="ssh", description="local = this machine, without sshd")
    port: Annotated[int, Field(ge=1, le=65535, description="default: from ssh_config, or 22")] = 22
    user: Word = Field(default="", description="account on the node; default: from ssh_config, or yours")
    identity_file: File = Field(default="", description="private key; default: from the agent and ssh_config")
    known_hosts: File = Field(default="", description="file of known host keys; default: the user's and the system's")
    slots: Slots = Field(default=None, description="runs at the same time; auto = number of cores")
    gpus: Annotated[int, Field(ge=0, le=1000, description="GPUs for --gpu; default: those that are found")] = 0
    weight: Weight = Field(default=1.0, description="speed of a core relative to the others")
    tags: list[Word] = Field(default=[], description="for selectors: --on @tag")
    toolchains: list[str] = Field(default=[], description="languages to use here; default: those that the probe finds")
    max_load: Share = Field(default=1.0, description="busy share of the cores above which no job starts: 80% or 0.8")
    workdir: Workdir = Field(
        default="", description="absolute path of a folder on the node; {uid} is the user id of the account"
    )
    connect_timeout: Timeout = Field(default=10.0, description="a duration such as 10s")
    shared_builds: bool = Field(default=True, description="false = does not share compiled programs with other nodes")


class NodeFields(Defaults):
    """One node, or all nodes of a range."""

    drained: bool = Field(default=False, description="true = starts no jobs; set by `sshgrid node drain`")


class GroupFields(Defaults):
    """Values that several nodes share. They override `defaults`, and a node overrides them."""

    nodes: list[NodePattern] = Field(min_length=1, description='names and ranges: [alpha, "node[01-10]"]')
    max_jobs_per_user: Annotated[
        int | None, Field(ge=1, description="running jobs of one user, at the same time on all nodes of the group")
    ] = None

    def shared(self) -> dict[str, Any]:
        """The values for each node of the group."""
        return {key: value for key, value in self.set_values().items() if key not in ("nodes", "max_jobs_per_user")}


class LanguageFields(_Model):
    """A new language, or a change to a built-in one."""

    match: list[Glob] = Field(default=[], min_length=1, description="file name patterns")
    compile: Argvs = Field(default=(), description="a command as a list of words, or a list of commands")
    run: Argv = Field(default=(), description="the command that runs it, as a list of words")
    probe: Argv = Field(default=(), description="a command that prints the version")
    interpreters: list[Word] = Field(default=[], description="names in a #! line")
    hello: str = Field(default="", description="a program that prints hello, for the smoke test of the toolchain")
    portable: bool = Field(default=False, description="true = a compiled program runs on all nodes of the same kind")


class RetryFields(_Model):
    """The retries after a host failure."""

    retries: Annotated[int, Field(ge=0, le=100, description="further attempts")] = 2
    backoff: Duration = Field(default=2.0, description="the limit of the first pause; it doubles with each retry")
    backoff_max: Duration = Field(default=60.0, description="the longest pause")
    patience: Annotated[list[Duration], AfterValidator(_patience)] = Field(
        default=[10.0, 600.0],
        description="[shortest, longest] wait for a silent host before its runs are started elsewhere",
    )


class Document(_Model):
    """The file inventory.yaml."""

    version: Annotated[Literal[1], Field(description="version of this format")] = 1
    defaults: Annotated[Defaults, BeforeValidator(_none_as_empty)] = Defaults()
    toolchains: Annotated[dict[LanguageName, LanguageFields], BeforeValidator(_none_as_empty)] = {}
    nodes: Annotated[
        dict[NodePattern, Annotated[NodeFields, BeforeValidator(_none_as_empty)]],
        Field(min_length=1, description="name or range (node[01-10]) -> its values"),
    ]
    groups: Annotated[
        dict[Word, GroupFields],
        BeforeValidator(_none_as_empty),
        Field(description="name of a group -> its nodes and their common values"),
    ] = {}
    placement: Literal["least-loaded", "round-robin", "pack"] = "least-loaded"
    retry: Annotated[RetryFields, BeforeValidator(_none_as_empty)] = RetryFields()
    queue: Queue = "sqlite"


def json_schema() -> dict[str, object]:
    """A JSON Schema (2020-12) of the file, for editors and docs."""
    schema = Document.model_json_schema()
    sections = schema["properties"]
    sections["nodes"]["propertyNames"] = {"pattern": r"^[A-Za-z0-9_\[][A-Za-z0-9._:,\[\]-]*$"}
    sections["nodes"]["additionalProperties"] = _allow_null(sections["nodes"]["additionalProperties"])
    for name in ("defaults", "toolchains", "groups", "retry"):
        sections[name] = _allow_null(sections[name])
    for name in (
        "NodeFields",
        "Defaults",
        "GroupFields",
        "LanguageFields",
    ):  # the defaults in these models are only placeholders
        for item in schema["$defs"][name]["properties"].values():
            item.pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "sshgrid inventory"}


def _allow_null(section: dict[str, Any]) -> dict[str, Any]:
    """A key with nothing after it, as `_or_empty` reads it."""
    section.pop("default", None)
    return {"anyOf": [section, {"type": "null"}]}


# --- from the errors of pydantic to messages --------------------------------------------------------------------------

_MODELS: dict[str, type[_Model]] = {
    "defaults": Defaults,
    "nodes": NodeFields,
    "groups": GroupFields,
    "toolchains": LanguageFields,
    "retry": RetryFields,
}
_SYNONYMS = {
    "address": "host",
    "alias": "ssh_config",
    "cores": "slots",
    "cpus": "slots",
    "ip": "host",
    "key": "identity_file",
    "labels": "tags",
    "login": "user",
    "timeout": "connect_timeout",
    "username": "user",
}
_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_SECRET = re.compile(r"(?:ssh_?|sudo_?|become_?)?(?:pass|passwd|password|passphrase|secret|token)", re.IGNORECASE)


def _value_text(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool() | int() | float():
            return f"{json.dumps(value)} (a {'boolean' if isinstance(value, bool) else 'number'})"
        case str():
            return json.dumps(value if len(value) <= 60 else value[:57] + "...", ensure_ascii=False)
        case dict():
            return "a mapping"
        case _:
            return "a list"


def violations(error: ValidationError) -> Iterator[tuple[Path, bool, str]]:
    """The path of each error, whether the key is wrong (not the value), and the message."""
    for detail in error.errors(include_url=False):
        path = detail["loc"]
        of_key = detail["type"] == "extra_forbidden" or "[key]" in path
        yield tuple(part for part in path if part != "[key]"), of_key, _message(detail)


def _message(detail: ErrorDetails) -> str:
    kind, path, value, context = detail["type"], detail["loc"], detail["input"], detail.get("ctx", {})
    name = next((repr(part) for part in reversed(path) if isinstance(part, str)), "the file")
    match kind:
        case "extra_forbidden":
            return _unknown_key(path)
        case "greater_than_equal" | "less_than_equal":
            bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
            return f"{name} must be {bound}, not {value}"
        case "missing":
            return f"the key {name} is required"
        case "violation":
            message = str(context["message"])
            return f"{name} {message}" if message.startswith("must ") else message
        case "literal_error":
            options = re.findall(r"'([^']*)'", str(context["expected"])) or [str(context["expected"])]
            close = did_you_mean(value, options) if isinstance(value, str) else ""
            return f"{name} must be {' or '.join(options)}, not {_value_text(value)}{close}"
        case "too_short":
            return f"{name} must not be empty"
        case _ if kind in _KINDS:
            return f"{name} must be {_KINDS[kind]}, not {_value_text(value)}{_quotes_hint(kind, value)}"
        case _:
            return f"{name}: {detail['msg'].lower()}"


def _quotes_hint(kind: str, value: object) -> str:
    if kind != "string_type" or value is None or isinstance(value, list):
        return ""
    return "; write a {template} in quotes" if isinstance(value, dict) else "; write it in quotes"


def _unknown_key(path: Path) -> str:
    key = str(path[-1])
    if _SECRET.fullmatch(key):
        way = "`sshgrid node add --copy-key` installs a public key"
        return f"unknown key {key!r}: secrets are not allowed in this file; {way}"
    if key == "<<":
        return "merge keys are not allowed; write common keys in `defaults` or in a group"
    model = _MODELS.get(str(path[0]), Document) if len(path) > 1 else Document
    if key == "drained" and model in (Defaults, GroupFields):
        return f"'drained' is a key of a node, not of {str(path[0])!r}"
    synonym = f"; did you mean {_SYNONYMS[key]!r}?" if _SYNONYMS.get(key) in model.model_fields else ""
    return f"unknown key {key!r}{synonym or did_you_mean(key, model.model_fields)}"
