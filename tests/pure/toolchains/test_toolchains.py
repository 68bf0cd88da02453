"""Languages of files, tools of nodes, and versions."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid import toolchains
from sshgrid.errors import UnknownLanguage, UsageError
from sshgrid.model import Language
from sshgrid.toolchains import recipes
from sshgrid.toolchains.table import ALIASES, LANGUAGES
from tests.pure.toolchains.programs import FACTS, ROWS, recipe_of, source_file, toolchain

JVM = ["-XX:+IgnoreUnrecognizedVMOptions", "-XX:-UsePerfData"]
JAVAC = ["-J-XX:+IgnoreUnrecognizedVMOptions", "-J-XX:-UsePerfData", "-J-XX:TieredStopAtLevel=1"]

each_language = pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)


def which(name: str, head: bytes = b"", executable: bool = False, wanted: str = "") -> str:
    return toolchains.language_of(name, head, executable, LANGUAGES, wanted)[0].name


def _which_or_none(name: str, head: bytes = b"") -> str | None:
    try:
        return which(name, head)
    except UsageError:
        return None


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_language_of_the_interface_is_in_the_table() -> None:
    on = "c cpp java python sh bash javascript go rust perl ruby php csharp executable make"
    offered = (
        "kotlin scala groovy clojure typescript lua r julia octave haskell ocaml fortran pascal d nim zig crystal "
        "swift objective-c dart elixir erlang lisp racket prolog cobol nasm tcl awk sql"
    )
    assert {language.name for language in LANGUAGES if language.default} == set(on.split())
    assert {language.name for language in LANGUAGES if not language.default} == set(offered.split())


def test_names_are_unique_and_aliases_lead_to_them() -> None:
    assert len(ROWS) == len(LANGUAGES)
    assert set(ALIASES.values()) <= ROWS.keys()
    assert not ALIASES.keys() & ROWS.keys()


@each_language
def test_a_row_has_no_fault_and_tunes_for_no_cpu(language: Language) -> None:
    assert toolchains.row_error(language) == ""
    assert "{args}" in language.run
    assert not any("march" in word for row in language.compile for word in row)


@each_language
def test_the_smoke_test_of_a_row_is_recognised_as_its_language(language: Language) -> None:
    made = toolchains.smoke_test(language)
    assert made is not None
    hello, source = made
    assert hello.files == (source_file(hello.entry, source, executable=language.name == "executable"),)
    expected = {"octave": None, "objective-c": None, "executable": "sh"}.get(language.name, language.name)
    assert _which_or_none(hello.entry, source) == expected


@each_language
def test_every_row_gives_a_recipe_without_placeholders(language: Language) -> None:
    hello, source = toolchains.smoke_test(language) or pytest.fail("no hello")
    recipe = toolchains.recipe(language, toolchain(language), hello, source, FACTS)
    words = [word for command in recipe.compile for word in command]
    words += [word.decode() for word in toolchains.argv_in(recipe.run, b"/b")]
    words += [value.decode() for _, value in recipe.env]
    assert not any("{" in word for word in words)
    assert all(command[0].startswith("/bin/") for command in recipe.compile)


@pytest.mark.parametrize(
    ("language", "compiled", "run"),
    [
        ("c", [["/bin/gcc", "-O2", "-o", "exe", "x.c", "-lm"]], ["/b/exe", "1"]),
        ("cpp", [["/bin/g++", "-O2", "-std=c++17", "-o", "exe", "x.cpp"]], ["/b/exe", "1"]),
        (
            "java",
            [["/bin/mkdir", "-p", "out"], ["/bin/javac", *JAVAC, "-encoding", "UTF-8", "-d", "out", "x.java"]],
            ["/bin/java", *JVM, "-cp", "/b/out", "x", "1"],
        ),
        ("python", [], ["/bin/python3", "-u", "/b/x.py", "1"]),
        (
            "rust",
            [["/bin/rustc", "-O", "--edition=2021", "--crate-name=main", "-o", "exe", "x.rs"]],
            ["/b/exe", "1"],
        ),
        ("go", [["/bin/go", "build", "-o", "exe", "x.go"]], ["/b/exe", "1"]),
        ("executable", [], ["/b/x", "1"]),
        ("awk", [], ["/bin/awk", "-f", "/b/x.awk", "--", "1"]),
    ],
)
def test_commands_are_those_of_the_interface(language: str, compiled: list[list[str]], run: list[str]) -> None:
    name = "x" + (ROWS[language].match[0][1:] if ROWS[language].match else "")
    recipe = recipe_of(language, name, args=(b"1",))
    assert [list(command) for command in recipe.compile] == compiled
    assert [word.decode() for word in toolchains.argv_in(recipe.run, b"/b")] == run


def test_go_has_a_cache_of_its_own_and_no_cgo() -> None:
    env = dict(recipe_of("go", "x.go").env)
    assert env["CGO_ENABLED"] == b"0"
    assert env["GOCACHE"] == b"/var/tmp/sshgrid-1000/cache/go"


# --- which language --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "executable", "language"),
    [
        ("a.c", b"", False, "c"),
        ("a.cc", b"", False, "cpp"),
        ("a.C", b"", False, "cpp"),
        ("A.java", b"", True, "java"),
        ("a.b/c.py", b"", False, "python"),
        ("a.mjs", b"", False, "javascript"),
        ("Makefile", b"", False, "make"),
        ("x/GNUmakefile", b"", False, "make"),
        ("a.sh", b"", False, "sh"),
        ("a.sh", b"#!/bin/sh\n", True, "sh"),
        ("a.sh", b"#!/bin/bash\n", False, "bash"),
        ("a.sh", b"#!/usr/bin/env -S bash -e\n", False, "bash"),
        ("a.sh", b"#!/usr/bin/zsh\n", False, "executable"),
        ("a.pl", b"print 1;", False, "perl"),
        ("a.pl", b"#!/usr/bin/swipl\n:- x.", False, "prolog"),
        ("a.pl", b"#! /usr/bin/perl -w\n$x ? 1 :-1", False, "perl"),
        ("a.m", b"#!/usr/bin/octave\n", False, "octave"),
        ("a.py", b"#!/usr/bin/env pypy3\n", True, "python"),
        ("tool", b"#!/usr/bin/env python3\n", False, "python"),
        ("tool", b"#!/usr/bin/env A=1 python3\n", False, "python"),
        ("tool", b"#!/opt/own/thing\n", True, "executable"),
        ("tool", b"\x7fELF\x02", True, "executable"),
        ("tool.d", b"\x7fELF\x02", True, "executable"),
    ],
)
def test_a_language_is_recognised_by_name_first_line_and_mode(
    name: str, head: bytes, executable: bool, language: str
) -> None:
    assert which(name, head, executable) == language


@pytest.mark.parametrize(
    ("name", "head", "candidates"),
    [
        ("a.m", b"", "objective-c or octave"),
        ("a.m", b"#!/bin/x\n", "objective-c or octave"),
        ("a.pl", b":- x.", "perl or prolog"),
    ],
)
def test_an_ambiguous_file_is_refused_with_its_candidates(name: str, head: bytes, candidates: str) -> None:
    with pytest.raises(UsageError, match=f"can be {candidates}") as caught:
        which(name, head)
    assert "--lang" in caught.value.hint
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("java", ("java", "")),
        ("java>=17", ("java", ">=17")),
        ("java >= 17", ("java", ">= 17")),
        ("python==3.11", ("python", "==3.11")),
        ("python>=3.8,<4", ("python", ">=3.8,<4")),
        ("c++", ("cpp", "")),
        ("c++>11", ("cpp", ">11")),
        ("C#", ("csharp", "")),
        ("JS", ("javascript", "")),
        ("objective-c<5", ("objective-c", "<5")),
    ],
)
def test_the_requested_language_overrides_the_file(wanted: str, expected: tuple[str, str]) -> None:
    language, constraint = toolchains.language_of("any.pl", b":-", False, LANGUAGES, wanted)
    assert (language.name, constraint) == expected


@pytest.mark.parametrize(
    "wanted", ["java=17", "java>=", "java>=x", "java 17", ">=17", " ", "java>=17;x", "java!=17", "c>=1,"]
)
def test_an_invalid_request_for_a_language_is_a_usage_error(wanted: str) -> None:
    with pytest.raises(UsageError) as caught:
        which("a.c", wanted=wanted)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("name", "head", "message", "hint"),
    [
        ("a.pyy", b"", "did you mean '.py'?", "sshgrid toolchains"),
        ("a.PY", b"", "did you mean '.py'?", "sshgrid toolchains"),
        ("a.python", b"", "did you mean '.py'?", "sshgrid toolchains"),
        ("a.qwertz", b"", "no language is known for '.qwertz'", "sshgrid toolchains"),
        ("README", b"", "without an ending", "--lang"),
        ("tool", b"\x7fELF", "mode is not executable", "chmod +x tool"),
        ("tool", b"#!/opt/x\n", "mode is not executable", "chmod +x tool"),
    ],
)
def test_an_unknown_file_is_named_with_a_suggestion(name: str, head: bytes, message: str, hint: str) -> None:
    with pytest.raises(UnknownLanguage) as caught:
        which(name, head)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_status == 127


def test_an_unknown_language_is_named_with_a_suggestion() -> None:
    with pytest.raises(UnknownLanguage, match=r"'pyton'; did you mean 'python'\?") as caught:
        which("a.py", wanted="pyton")
    assert caught.value.hint == "sshgrid toolchains"


def test_a_user_row_overrides_a_built_in_row_for_the_same_suffix() -> None:
    own = Language(name="gnucobol", match=("*.cob",), run=("cobc", "-xj", "{src}"))
    assert toolchains.language_of("a.cob", b"", False, (*LANGUAGES, own))[0] == own


def _refusal(name: str, head: bytes = b"", executable: bool = False, wanted: str = "") -> UsageError | None:
    try:
        which(name, head, executable, wanted)
    except UsageError as error:
        return error
    return None


@given(st.text(), st.binary(max_size=300), st.booleans(), st.one_of(st.just(""), st.text()))
def test_any_file_gets_a_language_or_a_usage_error_without_control_characters(
    name: str, head: bytes, executable: bool, wanted: str
) -> None:
    refusal = _refusal(name, head, executable, wanted)
    assert refusal is None or (refusal.message.isprintable() and refusal.hint.isprintable())


@given(st.sampled_from([row for row in LANGUAGES if row.match]), st.text(st.characters(exclude_characters="/")))
def test_every_name_of_a_language_is_its_own_or_ambiguous(language: Language, stem: str) -> None:
    name = language.match[0].replace("*", stem)
    found = _which_or_none(name)
    assert found is None or recipes.matches(ROWS[found], name)
    assert found is not None or language.name in str(_refusal(name))


# --- tools of a node -------------------------------------------------------------------------------------------------


def test_the_first_alternative_that_was_found_is_taken() -> None:
    assert toolchains.resolve(ROWS["c"], {"clang": "/a/clang", "cc": "/b/cc"}) == {"gcc|clang|cc": "/a/clang"}
    assert toolchains.resolve(ROWS["c"], {"cc": "/b/cc"}) == {"gcc|clang|cc": "/b/cc"}
    assert toolchains.resolve(ROWS["c"], {"make": "/b/make"}) is None


def test_a_language_with_half_of_its_tools_is_missing() -> None:
    assert toolchains.resolve(ROWS["java"], {"java": "/j", "mkdir": "/m"}) is None
    found = toolchains.resolve(ROWS["java"], {"java": "/j", "javac": "/jc", "mkdir": "/m"})
    assert found == {"java": "/j", "javac": "/jc", "mkdir": "/m"}


def test_a_tool_for_the_version_alone_may_be_missing_with_a_smoke_test() -> None:
    erlang = ROWS["erlang"]
    assert toolchains.resolve(erlang, {"escript": "/e"}) == {"escript": "/e"}
    assert toolchains.resolve(msgspec.structs.replace(erlang, hello=""), {"escript": "/e"}) is None


def test_an_executable_needs_no_tool() -> None:
    assert toolchains.commands(ROWS["executable"]) == ()
    assert toolchains.resolve(ROWS["executable"], {}) == {}


def test_tools_lists_every_alternative_once() -> None:
    found = toolchains.tools(LANGUAGES)
    assert {"gcc", "clang", "cc", "java", "javac", "python3", "node", "nodejs"} <= set(found)
    assert len(found) == len(set(found))
    assert not any("|" in tool or "{" in tool for tool in found)


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "version"),
    [
        (b"gcc (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright (C) 2022", "12.2.0"),
        (b"gcc (crosstool-NG 1.24.0) 9.3.0", "9.3.0"),
        (b"gcc (GCC) 13.2.1 20230801 (Red Hat 13.2.1-1)", "13.2.1"),
        (b"Debian clang version 14.0.6\nTarget: x86_64-pc-linux-gnu", "14.0.6"),
        (b"Apple clang version 15.0.0 (clang-1500.1.0.2.5)", "15.0.0"),
        (b"javac 17.0.15\n", "17.0.15"),
        (b"javac 1.8.0_392\n", "1.8.0_392"),
        (b"Picked up JAVA_TOOL_OPTIONS: -Dx=1.2.3\njavac 21.0.1\n", "21.0.1"),
        (b'openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6)', "17.0.15"),
        (b"javac 21\n", "21"),
        (b"Python 3.11.7\n", "3.11.7"),
        (b"Python 3.13.0rc1\n", "3.13.0"),
        (b"go version go1.22.1 linux/amd64", "1.22.1"),
        (b"rustc 1.95.0 (59807616e 2026-04-14)", "1.95.0"),
        (b"rustc 1.80.0-nightly (ada5e2c7b 2024-05-31)", "1.80.0"),
        (b"v20.20.2\n", "20.20.2"),
        (b"GNU bash, version 5.2.15(1)-release (x86_64-pc-linux-gnu)", "5.2.15"),
        (b"This is perl 5, version 36, subversion 0 (v5.36.0) built for x86_64-linux-gnu", "5.36.0"),
        (b"ruby 3.1.2p20 (2022-04-12 revision 4491bb740a) [x86_64-linux-gnu]", "3.1.2"),
        (b"PHP 8.2.29 (cli) (built: Jul  3 2025 16:16:05) (NTS)\nZend Engine v4.2.29", "8.2.29"),
        (b"LDC - the LLVM D compiler (1.30.0):\n  based on DMD v2.100.1 and LLVM 14.0.6", "1.30.0"),
        (b"cobc (GnuCOBOL) 3.1.2.0\n", "3.1.2.0"),
        (b"25\n", "25"),
        (b"", ""),
        (b"\xff\xfe no numbers", ""),
    ],
)
def test_a_version_is_found_in_what_a_tool_prints(output: bytes, version: str) -> None:
    assert toolchains.version_in(output) == version


@pytest.mark.parametrize(
    ("version", "constraint", "expected"),
    [
        ("17.0.15", "", True),
        ("", "", True),
        ("", ">=1", False),
        ("17.0.15", ">=17", True),
        ("17.0.15", ">=17.0.9", True),
        ("17.0.15", "==17", True),
        ("17.0.15", "<=17", True),
        ("17.0.15", ">17", False),
        ("17.0.15", "<17", False),
        ("9.4", ">=10", False),
        ("10", ">=9.4", True),
        ("3.9", "<3.11", True),
        ("3.11.7", ">=3.8,<3.12", True),
        ("3.12.0", ">=3.8,<3.12", False),
        ("17", "==17.0", True),
        ("17", ">=17.0.1", False),
        ("1.8.0_392", ">=8", True),
        ("1.8.0_392", "==8", True),
        ("1.8.0_392", ">=1.8", True),
        ("1.8.0_392", "<9", True),
        ("1.8.0_392", ">=11", False),
        ("1.22.1", ">=1.8", True),
        ("1.8.0", ">=8", False),
    ],
)
def test_versions_compare_number_by_number(version: str, constraint: str, expected: bool) -> None:
    assert toolchains.satisfies(version, constraint) is expected


_numbers = st.lists(st.integers(0, 10**6), min_size=1, max_size=5)


@given(_numbers, _numbers)
def test_exactly_one_of_less_equal_greater_holds(version: list[int], bound: list[int]) -> None:
    have, want = ".".join(map(str, version)), ".".join(map(str, bound))
    assert sum(toolchains.satisfies(have, sign + want) for sign in ("<", "==", ">")) == 1
    assert toolchains.satisfies(have, ">=" + want) is not toolchains.satisfies(have, "<" + want)
    assert toolchains.satisfies(have, "<=" + want) is not toolchains.satisfies(have, ">" + want)


@given(_numbers, _numbers)
def test_versions_of_the_same_length_compare_as_tuples(version: list[int], bound: list[int]) -> None:
    length = min(len(version), len(bound))
    have, want = version[:length], bound[:length]
    assert toolchains.satisfies(".".join(map(str, have)), ">=" + ".".join(map(str, want))) is (have >= want)


@given(st.binary(max_size=2000))
def test_any_output_has_a_version_that_can_be_compared_or_none(output: bytes) -> None:
    version = toolchains.version_in(output)
    assert toolchains.satisfies(version, ">=0") is bool(version)
