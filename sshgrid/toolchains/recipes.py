"""Turns a program and a node's toolchain into a recipe: where files are placed, which commands build and which run.

Pure text. Names, arguments and flags of users are data: no shell reads them, and no tool takes a name for an option.
Names that could leave the build folder, and flags for languages without flags, are UsageErrors.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping

import msgspec

from sshgrid.errors import UnknownLanguage, UsageError
from sshgrid.model import Facts, Language, Program, Recipe, SourceFile, Struct, Toolchain
from sshgrid.notation.filenames import MAX_COMPONENT_BYTES, MAX_NAME_BYTES, check_program
from sshgrid.toolchains import java_source, makefile
from sshgrid.toolchains.sharing import compiler_environment, is_shareable

_KEY_VERSION = "sshgrid build 2"  # increase it when the meaning of a recipe changes: old builds are then not used

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]*")  # no tool takes such a name for an option
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SUFFIX = re.compile(r"\*\.[^*?\[/]+")
_PLACEHOLDER = re.compile(r"\{(src|srcs|exe|out|main|dir|flags|libs|args|cache)\}")
_WHOLE = frozenset({"{flags}", "{libs}", "{args}", "{srcs}"})
_FOLDER_FIRST = ("{src}", "{exe}", "{out}", "{dir}")
_LOOKS_PLACED = re.compile(rb"\{+dir\}")
# compilers that derive a module name, an import path or a linker script from the file name: an odd name becomes `main`
_NAME_IS_MODULE = frozenset({"d", "dart", "go", "haskell", "kotlin", "nim", "ocaml", "pascal", "swift", "zig"})


def matches(language: Language, name: str) -> bool:
    """Return whether the table assigns a file of this name to this language."""
    base = name.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(base, pattern) for pattern in language.match)


def suffix_of(language: Language) -> str:
    """Return the suffix of files in this language, like ".c"; "" when the table matches whole names."""
    return next((pattern[1:] for pattern in language.match if _SUFFIX.fullmatch(pattern)), "")


# --- recipe -----------------------------------------------------------------------------------------------------------


class _Plan(Struct, frozen=True):
    """Where files are placed in the build folder; all names are relative to it."""

    files: tuple[tuple[str, SourceFile], ...]
    entry: str
    exe: str
    out: str
    main: str
    renamed: tuple[tuple[str, str], ...]


def recipe(language: Language, toolchain: Toolchain, program: Program, source: bytes, facts: Facts) -> Recipe:
    """Return what a node with `toolchain` and `facts` does for `program`; `source` is the content of its entry file.

    The same arguments give the same recipe. Raises UsageError when the files cannot be placed.
    """
    check_program(program)
    plan = _plan(language, program, source)
    compile_rows, run_row = _rows(language, program, source)
    flags = (*_first_line_flags(language, source), *program.flags)
    _check_flags(language, program.flags)
    cache = f"{facts.workdir}/cache"
    commands = toolchain.commands
    args = program.args if plan.exe else _make_arguments(program.args)
    compiled = tuple(_compile_words(row, language, plan, flags, cache, commands) for row in compile_rows)
    return Recipe(
        build_key=_build_key(language, toolchain, program, plan, compile_rows, facts),
        layout=plan.files,
        compile=compiled,
        run=_run_words(run_row, plan, flags, args, cache, commands),
        env=tuple((name, value.replace("{cache}", cache).encode()) for name, value in language.env),
        renamed=plan.renamed,
        address_space_limit=language.address_space_limit,
        shared=is_shareable(language, compiled, program.env, facts),
    )


def _plan(language: Language, program: Program, source: bytes) -> _Plan:
    others = [file for file in program.files if file.name != program.entry]
    taken = {file.name for file in others}
    java = java_source.find_main(source, program.entry) if language.name == "java" else None
    wanted = _java_name(java, program.entry) if java else _node_name(language, program.entry)
    entry = program.entry if wanted == program.entry else _free_name(wanted, taken)
    run_is_entry = language.run[0] == "{src}"
    laid = [(file.name, file) for file in others]
    laid += [
        (entry, msgspec.structs.replace(file, executable=file.executable or run_is_entry))
        for file in program.files
        if file.name == program.entry
    ]
    tops = {name.partition("/")[0] for name, _ in laid}
    base = entry.rpartition("/")[2]
    return _Plan(
        files=tuple(sorted(laid)),
        entry=entry,
        exe=_program_of_make(source, program) if language.name == "make" else _unused("exe", tops),
        out=_unused("out", tops),
        main=java.main if java else base.rpartition(".")[0] or base,
        renamed=_renamed(entry, program),
    )


def _renamed(entry: str, program: Program) -> tuple[tuple[str, str], ...]:
    pairs = [(_safe(entry), program.entry), (entry, program.entry)]
    if entry != program.entry:  # go prints ./main.go for main.go
        pairs.append((f"./{entry}", program.entry))
    pairs += [(_safe(file.name), file.name) for file in program.files]
    return tuple(dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]))


def _java_name(java: java_source.JavaSource, entry: str) -> str:
    if entry.rpartition("/")[2] == f"{java.stem}.java":
        return entry
    folders = java.package.replace(".", "/") + "/" if java.package and len(java.package) < MAX_NAME_BYTES // 4 else ""
    return f"{folders}{java.stem}.java"


def _node_name(language: Language, entry: str) -> str:
    """Return the user's file name, changed where the compiler requires it: with its suffix, or as an identifier."""
    suffix = suffix_of(language)
    if not (language.compile and suffix):
        return entry
    folder, slash, base = entry.rpartition("/")
    if not matches(language, entry):
        base += suffix
    stem, dot, ending = base.rpartition(".")
    odd = language.name in _NAME_IS_MODULE and not _IDENTIFIER.fullmatch(stem)
    # go ignores files that are named like a test or for another system
    odd = odd or (language.name == "go" and "_" in stem)
    if odd or len(base.encode()) > MAX_COMPONENT_BYTES:
        stem = "main"
    return f"{folder}{slash}{stem}{dot}{ending}"


def _free_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or the same name in a new folder when another file or folder has that name."""
    folders = {wanted[:place] for place, sign in enumerate(wanted) if sign == "/"}
    below = any(name.startswith(f"{wanted}/") for name in taken)
    if wanted not in taken and not below and not folders & taken:
        return wanted
    return f"{_unused('entry', {name.partition('/')[0] for name in taken})}/{wanted}"


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _safe(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else f"./{name}"


# --- words ------------------------------------------------------------------------------------------------------------


def _rows(language: Language, program: Program, source: bytes) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    if language.name != "make":
        return language.compile, language.run
    found = makefile.find_program(source)
    if found.binary:
        return language.compile, language.run
    make = language.compile[0][0]
    run = (make, "-s", "--no-print-directory", "-C", "{dir}", "-f", program.entry, "run", "{args}")
    return language.compile if found.builds else (), run


def _program_of_make(source: bytes, program: Program) -> str:
    if "/" in program.entry:
        raise UsageError(
            f"{program.entry!r} is not at the top of its project", "run the folder that holds the Makefile"
        )
    return makefile.find_program(source).binary


def _check_flags(language: Language, flags: tuple[str, ...]) -> None:
    takes = any("{flags}" in row for row in (*language.compile, language.run))
    if flags and not takes:
        raise UsageError(f"{language.name} takes no --flags")


def _first_line_flags(language: Language, source: bytes) -> tuple[str, ...]:
    """Return the options of a #! line (#!/bin/bash -eu), which the kernel would pass to the interpreter."""
    if language.compile or not source.startswith(b"#!") or "{flags}" not in language.run:
        return ()
    words = source[2:512].partition(b"\n")[0].decode("utf-8", "replace").split()
    interpreter = next((place for place, word in enumerate(words) if _base(word) in language.interpreters), None)
    if interpreter is None:
        return ()
    options = words[interpreter + 1 :]
    return tuple(word for word in options if word.startswith("-") and word not in language.run)


def _base(word: str) -> str:
    return word.rpartition("/")[2]


def _compile_words(
    row: tuple[str, ...],
    language: Language,
    plan: _Plan,
    flags: tuple[str, ...],
    cache: str,
    commands: Mapping[str, str],
) -> tuple[str, ...]:
    values = {
        "src": _safe(plan.entry), "exe": plan.exe, "out": plan.out, "main": plan.main, "dir": ".", "cache": cache,
    }  # fmt: skip
    lists = _flag_lists(row, flags) | {"{srcs}": _sources(language, plan), "{args}": ()}
    words = [_command(row[0], commands)]
    for word in row[1:]:
        if word in _WHOLE:
            words += lists[word]
        elif not _overridden(word, flags):
            words.append(_fill(word, values))
    return tuple(_fill(word, values) if place == 0 else word for place, word in enumerate(words))


def _sources(language: Language, plan: _Plan) -> tuple[str, ...]:
    # the entry last: compilers of modules (fortran, ocaml) want what is used before what uses it
    others = [name for name, _ in plan.files if name != plan.entry and matches(language, name)]
    return (*map(_safe, others), _safe(plan.entry))


def _flag_lists(row: tuple[str, ...], flags: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Put libraries (-lssl) into {libs}, after the sources: a linker takes only symbols that are already needed."""
    if "{libs}" not in row:
        return {"{flags}": flags, "{libs}": ()}
    libs = tuple(flag for flag in flags if flag.startswith("-l"))
    return {"{flags}": tuple(flag for flag in flags if flag not in libs), "{libs}": libs}


def _overridden(word: str, flags: tuple[str, ...]) -> bool:
    """Return whether the user's flags replace this option of the table: --edition given twice is an error."""
    option, equals, _ = word.partition("=")
    return bool(equals) and word.startswith("--") and any(flag.partition("=")[0] == option for flag in flags)


def _command(word: str, commands: Mapping[str, str]) -> str:
    if word.startswith("{"):
        return word
    if word not in commands:
        raise UnknownLanguage(f"the node's toolchain has no {word.replace('|', ' or ')}", "sshgrid toolchains")
    return commands[word]


def _run_words(
    row: tuple[str, ...],
    plan: _Plan,
    flags: tuple[str, ...],
    args: tuple[bytes, ...],
    cache: str,
    commands: Mapping[str, str],
) -> tuple[bytes, ...]:
    folder = "{dir}"
    values = {
        "src": f"{folder}/{plan.entry}", "exe": f"{folder}/{plan.exe}", "out": f"{folder}/{plan.out}",
        "main": plan.main, "dir": folder, "cache": cache,
    }  # fmt: skip
    lists = {"{flags}": flags, "{libs}": (), "{srcs}": ()}
    words = list[bytes]()
    for word in (_command(row[0], commands), *row[1:], *(() if "{args}" in row else ("{args}",))):
        if word == "{args}":
            words += map(_escaped, args)
        elif word in _WHOLE:
            words += (_escaped(each.encode()) for each in lists[word])
        else:
            filled = _fill(word, values).encode()
            words.append(filled if word.startswith(_FOLDER_FIRST) else _escaped(filled))
    return tuple(words)


def _make_arguments(args: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return ARGS=... for a target `run`, quoted for the shell that make starts and for make itself."""
    if any(b"\n" in arg for arg in args):
        raise UsageError(
            "make cannot pass an argument with a newline", "let the Makefile's first target name the program"
        )
    quoted = shlex.join(arg.decode("utf-8", "surrogateescape") for arg in args)
    return (b"ARGS=" + quoted.replace("$", "$$").encode("utf-8", "surrogateescape"),) if args else ()


def _fill(word: str, values: Mapping[str, str]) -> str:
    """Fill the placeholders in one pass: the name of a file `{exe}.c` is not filled again."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), word)


def _escaped(word: bytes) -> bytes:
    """Add a brace to a user's word that begins with {dir}; `placed` removes it."""
    return b"{" + word if _LOOKS_PLACED.match(word) else word


def placed(word: bytes) -> tuple[bool, bytes]:
    """Split a run word: whether it is below the build folder, and the rest, exactly as the program receives it."""
    if word.startswith(b"{dir}"):
        return True, word[len(b"{dir}") :]
    return False, word[1:] if _LOOKS_PLACED.match(word) else word


def argv_in(words: Iterable[bytes], folder: bytes) -> tuple[bytes, ...]:
    """Return the arguments of a recipe's run words, for the absolute build folder `folder`."""
    return tuple(folder + rest if inside else rest for inside, rest in map(placed, words))


def row_error(language: Language) -> str:
    """Return what is wrong with a user's row of the table, such as placeholders in wrong places; "" for a good row."""
    if not language.run or not all((language.run, *language.compile)):
        return "run and compile must be lists of words, and run is needed"
    for row in (*language.compile, language.run):
        if not row[0]:
            return "the first word of a command names a program"
        for word in row:
            named = [found[0] for found in _PLACEHOLDER.finditer(word)]
            if word not in _WHOLE and any(each in _WHOLE for each in named):
                return f"{word!r}: {' '.join(sorted(_WHOLE))} must be separate words"
    for word in language.run:
        if any(found[0] in _FOLDER_FIRST and found.start() for found in _PLACEHOLDER.finditer(word)):
            return f"{word!r}: in run, a path placeholder can only begin a word"
    if any("{args}" in row for row in language.compile):
        return "{args} belongs to run: a build is shared by runs with different arguments"
    return ""


# --- build key, smoke test, names in messages -------------------------------------------------------------------------


def _build_key(
    language: Language,
    toolchain: Toolchain,
    program: Program,
    plan: _Plan,
    compile_rows: tuple[tuple[str, ...], ...],
    facts: Facts,
) -> str:
    """Return a digest of everything that can change the build; the paths of the node's caches cannot."""
    identity = (
        _KEY_VERSION,
        language,
        sorted(toolchain.commands.items()),
        (toolchain.version, toolchain.kind or toolchain.fingerprint),
        program.flags,
        (plan.entry, plan.exe, plan.out, plan.main),
        compile_rows,
        [(name, file.sha256, file.executable) for name, file in plan.files],
        (facts.system, facts.architecture, facts.libc),
        [(name, value.hex()) for name, value in compiler_environment(program.env)] if compile_rows else [],
    )
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def smoke_test(language: Language) -> tuple[Program, bytes] | None:
    """Return a program that prints "hello" and a newline, and its source; None for a language without one."""
    if not language.hello:
        return None
    source = language.hello.encode()
    suffix = suffix_of(language)
    whole = next((pattern for pattern in language.match if not re.search(r"[*?\[/]", pattern)), "hello")
    name = f"hello{suffix}" if suffix else whole
    file = SourceFile(name, hashlib.sha256(source).hexdigest(), len(source), executable=language.run[0] == "{src}")
    return Program(language.name, name, (file,)), source


def verified(recipe: Recipe, language: str) -> Recipe:
    """Return the recipe with a build of another node used only after a smoke test.

    Its build key differs, so that a build that was used without a smoke test does not count as tested.
    """
    if not recipe.shared:
        return recipe
    return msgspec.structs.replace(recipe, build_key=_other_key(recipe, "verified"), verify=language)


def made_by(recipe: Recipe, maker: str) -> Recipe:
    """Return the recipe with a build key for builds of this maker alone."""
    return msgspec.structs.replace(recipe, build_key=_other_key(recipe, f"of {maker}"))


def _other_key(recipe: Recipe, why: str) -> str:
    return hashlib.sha256(f"{recipe.build_key} {why}".encode()).hexdigest()


def restore_names(text: bytes, recipe: Recipe) -> bytes:
    """Return a compiler's output with the user's file names instead of the node's."""
    names = {node.encode(): user.encode() for node, user in recipe.renamed}
    if not names:
        return text
    longest_first = sorted(names, key=len, reverse=True)
    pattern = rb"(?<![\w.$/-])(?:" + b"|".join(map(re.escape, longest_first)) + rb")(?![\w$])"
    return re.sub(pattern, lambda found: names[found[0]], text)
