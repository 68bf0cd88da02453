"""What may stand in an inventory: the keys, their values, and the sentence for each way of getting one wrong.

The one table of the file's schema: validation and the JSON Schema for editors both come from these models. Refuses
values that YAML read as something else than was meant (numbers where text is wanted), names that a shell or an ssh
command line could take for an option, and every key that would hold a secret.
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
from sshgrid.notation.quantities import parse_duration
from sshgrid.notation.selectors import did_you_mean, expand

WORD = re.compile(r"(?!-)[A-Za-z0-9._:-]{1,253}", re.ASCII)
NODE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,252}", re.ASCII)
_LANGUAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._+#-]{0,63}", re.ASCII)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_COMMAND_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_COMMAND_WORDS = ("src", "srcs", "exe", "out", "main", "dir", "flags", "args")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("said", "{said}", {"said": message})


# --- values -----------------------------------------------------------------------------------------------------------


def _word(text: str) -> str:
    if not WORD.fullmatch(text):
        raise _wrong(f"{json.dumps(text)} is not a name; letters, digits and . _ : - are, and no - in front")
    return text


def _template(text: str, known: tuple[str, ...] = ("name",)) -> str:
    """The text with its placeholders taken out; the rest must be fit by itself."""
    for found in _PLACEHOLDER.finditer(text):
        if found[1] not in known:
            options = " or ".join(f"{{{name}}}" for name in known)
            raise _wrong(f"unknown placeholder {found[0]}; {options} is known here")
    return _PLACEHOLDER.sub("x", text)


def _host(text: str) -> str:
    bare = _template(text)
    if "@" in bare and WORD.fullmatch(bare.replace("@", "")):
        raise _wrong(f"{json.dumps(text)} is not a host; the user goes into `user`")
    if bare.count(":") == 1:
        raise _wrong(f"{json.dumps(text)} is not a host; the port goes into `port`")
    if not WORD.fullmatch(bare):
        raise _wrong(f"{json.dumps(text)} is not a host; letters, digits and . _ : - are, and no - in front")
    return text


def _alias(text: str) -> str:
    _word(_template(text))
    return text


def _file(text: str) -> str:
    bare = _template(text)
    if not bare or bare.startswith("-") or _CONTROL.search(bare):
        raise _wrong(f"{json.dumps(text)} is not a path")
    return text


def _workdir(text: str) -> str:
    bare = _template(text, ("uid", "name"))
    if not bare.startswith("/") or _CONTROL.search(bare) or {".", ".."} & set(bare.split("/")) or not bare.strip("/"):
        raise _wrong(f"{json.dumps(text)} is not an absolute path; write for example /var/tmp/sshgrid-{{uid}}")
    return text


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(f"must be a duration like 10s, not {_shown(value)}")
    try:
        return parse_duration(str(value))
    except UsageError as error:
        raise _wrong(f"{error.message}; {error.hint}") from error


def _timeout(seconds: float) -> float:
    if not 0.1 <= seconds <= 3600:
        raise _wrong("a timeout is between 100ms and 1h")
    return seconds


def _slots(value: object) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(f"must be auto or a whole number, not {_shown(value)}")
    if not 1 <= value <= 10_000:
        hint = "; `drained: true` keeps a node from work" if value == 0 else ""
        raise _wrong(f"slots are between 1 and 10000{hint}")
    return value


_PERCENT = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,4})?) ?%", re.ASCII)


def _share(value: object) -> float:
    """80% or 0.8; above 10 a number is a percentage without its sign, and not guessed at."""
    percent = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, bool) or not (percent or isinstance(value, int | float)):
        raise _wrong(f"must be a share of the cores like 80% or 0.8, not {_shown(value)}")
    share = float(percent[1]) / 100 if percent else float(str(value))
    if not 0 < share <= 10:
        hint = f"; did you mean {value}%?" if isinstance(value, int) and 10 < value <= 1000 else ""
        raise _wrong(f"a share of the cores is above 0 and at most 1000%, and {value} is not{hint}")
    return share


def _weight(value: float) -> float:
    if not 0 < value <= 1000:
        raise _wrong("a weight is above 0 and at most 1000; 1 is the usual one, 0.5 half as attractive")
    return value


def _node_pattern(text: str) -> str:
    try:
        names = expand(text)
    except UsageError as error:
        raise _wrong(f"{error.message}; {error.hint}" if error.hint else error.message) from error
    if not NODE_NAME.fullmatch(names[0]):
        raise _wrong(f"{json.dumps(text)} is not a node name; letters, digits and . _ : - are, a letter or digit first")
    return text


def _language_name(text: str) -> str:
    if not _LANGUAGE_NAME.fullmatch(text):
        raise _wrong(f"{json.dumps(text)} is not a language name; letters, digits and . _ + # - are, a letter first")
    return text


def _glob(text: str) -> str:
    if not text or "/" in text or _CONTROL.search(text):
        raise _wrong(f"{json.dumps(text)} is not a pattern for file names; write for example *.cob")
    return text


def _argv(value: object) -> tuple[str, ...]:
    """A command: a list of words, never a shell string."""
    if isinstance(value, str):
        raise _wrong(f"a command is a list of words, never a shell string: {emit_words(value)}")
    if not isinstance(value, list) or not value:
        raise _wrong(f"a command is a list of words, not {'an empty one' if value == [] else _shown(value)}")
    for word in value:
        _command_word(word)
    return tuple(value)


def emit_words(command: str) -> str:
    """The command as the list of words that should have been written, for an error's hint."""
    return (
        "[" + ", ".join(json.dumps(word) if re.search(r"[{},\[\]]", word) else word for word in command.split()) + "]"
    )


def _command_word(word: object) -> None:
    if not isinstance(word, str):
        raise _wrong(f"the words of a command are text, and {_shown(word)} is not; put it in quotes")
    if not word or "\0" in word:
        raise _wrong("a word of a command is empty")
    for found in _COMMAND_PLACEHOLDER.finditer(word):
        if found[1] not in _COMMAND_WORDS:
            hint = did_you_mean(found[1], _COMMAND_WORDS)
            raise _wrong(f"unknown placeholder {found[0]}{hint}")
        if found[1] in ("args", "flags") and word != found[0]:
            raise _wrong(f"{found[0]} must be a word of its own, and {json.dumps(word)} holds more")


def _argvs(value: object) -> tuple[tuple[str, ...], ...]:
    """One command, or a list of commands in their order; an empty list compiles nothing."""
    if isinstance(value, list) and all(isinstance(command, list) for command in value):
        return tuple(_argv(command) for command in value)
    return (_argv(value),)


def _queue(value: object) -> str:
    if isinstance(value, str) and value.startswith(("postgresql:", "postgres:")):
        raise _wrong("this version does not know a postgresql queue; write sqlite, or leave `queue` out")
    if value != "sqlite":
        raise _wrong(f"must be sqlite, not {_shown(value)}")
    return "sqlite"


def _or_empty(value: object) -> object:
    """`alpha:` with nothing after it is a node with every default."""
    return {} if value is None else value


def _range(seconds: list[float]) -> list[float]:
    if len(seconds) != 2 or seconds[0] > seconds[1]:
        raise _wrong("patience is a list of the shortest and the longest wait, as in [10s, 10m]")
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

    def written(self) -> dict[str, Any]:
        """Only what the file says: the rest comes from `defaults`, then from model.Node."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


class Defaults(_Model):
    """What every node has unless it says otherwise."""

    host: Host = Field(
        default="", description="name or address; {name} stands for the node's name, which is the default"
    )
    ssh_config: Alias = Field(default="", description="a Host alias of your ssh_config, instead of `host`")
    connection: Literal["ssh", "local"] = Field(default="ssh", description="local = this machine, no sshd needed")
    port: Annotated[int, Field(ge=1, le=65535, description="default: what ssh_config says, or 22")] = 22
    user: Word = Field(default="", description="account on the node; default: what ssh_config says, or yours")
    identity_file: File = Field(default="", description="private key; default: agent and ssh_config")
    known_hosts: File = Field(default="", description="file of known host keys; default: the user's and the system's")
    slots: Slots = Field(default=None, description="runs at once; auto = number of cores")
    gpus: Annotated[int, Field(ge=0, le=1000, description="GPUs for --gpu; default: as many as are found")] = 0
    weight: Weight = Field(default=1.0, description="speed of a core relative to the others")
    tags: list[Word] = Field(default=[], description="for selectors: --on @tag")
    toolchains: list[str] = Field(default=[], description="languages to use here; default: whatever the probe finds")
    max_load: Share = Field(
        default=1.0, description="busy share of the cores above which nothing new starts: 80% or 0.8"
    )
    workdir: Workdir = Field(default="", description="absolute folder on the node; {uid} is the account's number")
    connect_timeout: Timeout = Field(default=10.0, description="a duration such as 10s")
    shared_builds: bool = Field(default=True, description="false = neither takes nor gives compiled programs")


class NodeFields(Defaults):
    """One node, or all nodes of a range."""

    drained: bool = Field(default=False, description="true = takes no new work; set by `sshgrid node drain`")


class GroupFields(Defaults):
    """What several nodes share: it comes before `defaults`, and a node's own words come before it."""

    nodes: list[NodePattern] = Field(min_length=1, description='names and ranges: [alpha, "node[01-10]"]')
    max_jobs_per_user: Annotated[
        int | None, Field(ge=1, description="how many runs of one user there may be at once on all of them together")
    ] = None

    def shared(self) -> dict[str, Any]:
        """What it says about each of its nodes."""
        return {key: value for key, value in self.written().items() if key not in ("nodes", "max_jobs_per_user")}


class LanguageFields(_Model):
    """A language of your own, or a change to a built-in one."""

    match: list[Glob] = Field(default=[], min_length=1, description="file name patterns")
    compile: Argvs = Field(default=(), description="a command as a list of words, or a list of commands")
    run: Argv = Field(default=(), description="the command that runs it, as a list of words")
    probe: Argv = Field(default=(), description="a command that prints the version")
    interpreters: list[Word] = Field(default=[], description="names in a #! line")
    hello: str = Field(default="", description="a program that prints hello: proof that the toolchain works")
    portable: bool = Field(default=False, description="true = what it builds runs on all nodes of the same kind")


class RetryFields(_Model):
    """What happens after a host failed."""

    retries: Annotated[int, Field(ge=0, le=100, description="further attempts")] = 2
    backoff: Duration = Field(default=2.0, description="pause before the first of them; it doubles each time")
    backoff_max: Duration = Field(default=60.0, description="the longest pause")
    patience: Annotated[list[Duration], AfterValidator(_range)] = Field(
        default=[10.0, 600.0], description="[shortest, longest] wait for a silent host before its runs move"
    )


class Document(_Model):
    """inventory.yaml"""

    version: Annotated[Literal[1], Field(description="of this format")] = 1
    defaults: Annotated[Defaults, BeforeValidator(_or_empty)] = Defaults()
    toolchains: Annotated[dict[LanguageName, LanguageFields], BeforeValidator(_or_empty)] = {}
    nodes: Annotated[
        dict[NodePattern, Annotated[NodeFields, BeforeValidator(_or_empty)]],
        Field(min_length=1, description="name or range (node[01-10]) -> what it is"),
    ]
    groups: Annotated[
        dict[Word, GroupFields],
        BeforeValidator(_or_empty),
        Field(description="name of a group -> its nodes and what they share"),
    ] = {}
    placement: Literal["least-loaded", "round-robin", "pack"] = "least-loaded"
    retry: Annotated[RetryFields, BeforeValidator(_or_empty)] = RetryFields()
    queue: Queue = "sqlite"


def json_schema() -> dict[str, object]:
    """A JSON Schema (2020-12) of the file, for editors and docs."""
    schema = Document.model_json_schema()
    sections = schema["properties"]
    sections["nodes"]["propertyNames"] = {"pattern": r"^[A-Za-z0-9_\[][A-Za-z0-9._:,\[\]-]*$"}
    sections["nodes"]["additionalProperties"] = _or_nothing(sections["nodes"]["additionalProperties"])
    for name in ("defaults", "toolchains", "groups", "retry"):
        sections[name] = _or_nothing(sections[name])
    for name in (
        "NodeFields",
        "Defaults",
        "GroupFields",
        "LanguageFields",
    ):  # absent is not the same as the placeholder above
        for item in schema["$defs"][name]["properties"].values():
            item.pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "sshgrid inventory"}


def _or_nothing(section: dict[str, Any]) -> dict[str, Any]:
    """A key with nothing after it, as `_or_empty` reads it."""
    section.pop("default", None)
    return {"anyOf": [section, {"type": "null"}]}


# --- what pydantic says, in our words ---------------------------------------------------------------------------------

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


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool() | int() | float():
            return f"{json.dumps(value)} (a {'truth value' if isinstance(value, bool) else 'number'})"
        case str():
            return json.dumps(value if len(value) <= 60 else value[:57] + "...", ensure_ascii=False)
        case dict():
            return "a mapping"
        case _:
            return "a list"


def complaints(error: ValidationError) -> Iterator[tuple[Path, bool, str]]:
    """For each error: the path of what it is about, whether it is the key that is wrong, and a sentence."""
    for detail in error.errors(include_url=False):
        path = detail["loc"]
        of_key = detail["type"] == "extra_forbidden" or "[key]" in path
        yield tuple(part for part in path if part != "[key]"), of_key, _sentence(detail)


def _sentence(detail: ErrorDetails) -> str:
    kind, path, value, context = detail["type"], detail["loc"], detail["input"], detail.get("ctx", {})
    name = next((repr(part) for part in reversed(path) if isinstance(part, str)), "the file")
    match kind:
        case "extra_forbidden":
            return _unknown_key(path)
        case "greater_than_equal" | "less_than_equal":
            bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
            return f"{name} must be {bound}, not {value}"
        case "missing":
            return f"the key {name} is missing"
        case "said":
            said = str(context["said"])
            return f"{name} {said}" if said.startswith("must ") else said
        case "literal_error":
            options = re.findall(r"'([^']*)'", str(context["expected"])) or [str(context["expected"])]
            close = did_you_mean(value, options) if isinstance(value, str) else ""
            return f"{name} must be {' or '.join(options)}, not {_shown(value)}{close}"
        case "too_short":
            return f"{name} is empty"
        case _ if kind in _KINDS:
            return f"{name} must be {_KINDS[kind]}, not {_shown(value)}{_quotes(kind, value)}"
        case _:
            return f"{name}: {detail['msg'].lower()}"


def _quotes(kind: str, value: object) -> str:
    if kind != "string_type" or value is None or isinstance(value, list):
        return ""
    return "; put a {template} in quotes" if isinstance(value, dict) else "; put it in quotes"


def _unknown_key(path: Path) -> str:
    key = str(path[-1])
    if _SECRET.fullmatch(key):
        return f"there is no key {key!r}: no secret belongs in this file; `sshgrid node add --copy-key` installs a key"
    if key == "<<":
        return "merge keys are not allowed; what nodes share goes into `defaults`"
    model = _MODELS.get(str(path[0]), Document) if len(path) > 1 else Document
    if key == "drained" and model in (Defaults, GroupFields):
        return f"'drained' belongs to a node, not to `{path[0]}`"
    synonym = f"; did you mean {_SYNONYMS[key]!r}?" if _SYNONYMS.get(key) in model.model_fields else ""
    return f"unknown key {key!r}{synonym or did_you_mean(key, model.model_fields)}"
