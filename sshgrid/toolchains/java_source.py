"""Finds the package, the public type and the type with main in a Java file.

A lexer, not a compiler: it skips comments, strings, text blocks, annotations and bodies, and returns an answer for any
text. javac reports wrong programs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from sshgrid.model import Struct

_TOKEN = re.compile(
    r"//[^\n]*"
    r"|/\*.*?(?:\*/|\Z)"
    r'|"""(?:\\.|[^\\])*?(?:"""|\Z)'
    r'|"(?:\\.|[^"\\\n])*"?'
    r"|'(?:\\.|[^'\\\n])*'?"
    r"|(?P<word>(?:[^\W\d]|\$)[\w$]*)"
    r"|(?P<sign>[{}()\[\];@.=])",
    re.DOTALL,
)
_KINDS = frozenset({"class", "interface", "enum", "record"})
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


class JavaSource(Struct, frozen=True):
    """What a node needs to know to compile and start a Java file."""

    package: str  # "a.b" or ""
    stem: str  # the file must be called stem + ".java"
    main: str  # what `java` is given: "a.b.Main"


class _Type(Struct, frozen=True):
    name: str
    public: bool
    main: int  # 0: none; 1: only Java 21 and later start it; 2: static void main(String...)


def find_main(source: bytes, file_name: str) -> JavaSource:
    """Return package, file name and main class of a Java file; without main, the first type or the file's name."""
    package, types = _outline(source.decode("utf-8", "replace").removeprefix("\ufeff"))
    own_stem = file_name.rpartition("/")[2].removesuffix(".java")
    if not types:  # since Java 21 a file may have main without a class; its name is then the class's
        stem = own_stem if _IDENTIFIER.fullmatch(own_stem) else "Main"
        return JavaSource(package, stem, _qualified(package, stem))
    public = next((each for each in types if each.public), None)
    chosen = max(types, key=lambda each: (each.main, each.public))  # max keeps the first of equals
    private_stem = own_stem if _IDENTIFIER.fullmatch(own_stem) else chosen.name
    stem = public.name if public else private_stem
    return JavaSource(package, stem, _qualified(package, chosen.name))


def _qualified(package: str, name: str) -> str:
    return f"{package}.{name}" if package else name


def _outline(text: str) -> tuple[str, list[_Type]]:
    package, types, head, bare_main = "", list[_Type](), list[str](), False
    tokens = _without_brackets(_tokens(text))
    for token in tokens:
        if token == ";":
            package = package or _package(head)
            head = []
        elif token == "{":
            bare_main = bare_main or _is_main(head) > 0
            main = _main_in(tokens)
            if declared := _declared(head, main):
                types.append(declared)
            head = []
        elif token == "}":
            head = []
        else:
            head.append(token)
    return package, [] if bare_main else types


def _tokens(text: str) -> Iterator[str]:
    for found in _TOKEN.finditer(text):
        if token := found["word"] or found["sign"]:
            yield token


def _without_brackets(tokens: Iterator[str]) -> Iterator[str]:
    """Turn each (...) into one token "(" + its words: arguments and parameters are not declarations."""
    inside, depth = list[str](), 0
    for token in tokens:
        if token == "(":
            depth += 1
        elif token == ")" and depth:
            depth -= 1
            if not depth:
                yield "(" + " ".join(inside)
                inside = []
        elif depth:
            inside.append(token)
        else:
            yield token


def _package(head: list[str]) -> str:
    if "package" not in head:
        return ""
    words = head[head.index("package") + 1 :]
    name = "".join(words)
    return name if all(_is_name(part) for part in name.split(".")) else ""


def _is_name(word: str) -> bool:
    return bool(word) and (word[0] == "$" or word[0].isidentifier()) and len(word.encode()) < 200


def _declared(head: list[str], main: int) -> _Type | None:
    head = _without_annotations(head)
    for place, (kind, name) in enumerate(itertools.pairwise(head)):
        if kind in _KINDS and _is_name(name) and (kind != "record" or head[place + 2 :]):
            return _Type(name, "public" in head[:place], main)
    return None


def _without_annotations(head: list[str]) -> list[str]:
    """Drop @a.b.C(...), and the @ of @interface."""
    kept, place = list[str](), 0
    while place < len(head):
        if head[place] != "@":
            kept.append(head[place])
            place += 1
            continue
        place += 1
        if head[place : place + 1] == ["interface"]:
            continue
        place += 1
        while head[place : place + 1] == ["."]:
            place += 2
        if place < len(head) and head[place].startswith("("):
            place += 1
    return kept


def _main_in(tokens: Iterator[str]) -> int:
    """Read a body up to its closing brace. Return the best `main` that it has directly."""
    best, depth, head = 0, 0, list[str]()
    for token in tokens:
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
        if depth < 0:
            break
        if token in {"{", "}", ";"}:
            best = max(best, _is_main(head))
            head = []
        elif not depth:
            head.append(token)
    return best


def _is_main(head: list[str]) -> int:
    head = _without_annotations(head)
    for place in range(len(head) - 2):
        if head[place : place + 2] == ["void", "main"] and head[place + 2].startswith("("):
            parameters = head[place + 2][1:].split()
            if "private" in head[:place] or (parameters and "String" not in parameters):
                return 0
            return 2 if "static" in head[:place] and parameters else 1
    return 0
