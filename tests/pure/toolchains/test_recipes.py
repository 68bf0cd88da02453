"""Recipes, what their keys depend on, and that a user's names and arguments stay data."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid import toolchains
from sshgrid.errors import UnknownLanguage, UsageError
from sshgrid.model import Facts, Language, Program, Recipe, Toolchain
from tests.pure.toolchains.programs import FACTS, ROWS, program, recipe_of, source_file, toolchain

# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a.c",
        "-x.c",
        "@file",
        'it\'s "x".c',
        "two\nlines.c",
        "$(id).c",
        "a/b/c.c",
        "..a",
        "a..",
        "\u65e5\u672c.c",
        "x" * 255,
        "\\",
    ],
)
def test_A9_an_odd_name_is_data(name: str) -> None:
    toolchains.check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "a\0b", "x" * 256, "\u00fc" * 128, "a/" + "y" * 256, "\udcff.c", "a//b", "a/", "./a", ".", "a/" * 1200 + "b"],
)
def test_A9_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="file name"):
        toolchains.check_name(name)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a/../../b", "a/..", "/"])
def test_A10_a_name_that_leaves_its_folder_refuses_the_whole_bundle_and_is_named(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_of("c", "ok.c", name)
    assert repr(name) in caught.value.message


@given(st.text(max_size=300))
def test_A10_what_is_accepted_stays_in_its_folder(name: str) -> None:
    try:
        toolchains.check_name(name)
    except UsageError:
        return
    assert not name.startswith("/")
    assert all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in name.split("/"))
    assert "\0" not in name


@pytest.mark.parametrize(
    ("names", "message"), [(("a.c", "a.c"), "given twice"), (("a.c", "a.c/b"), "both a file and a folder")]
)
def test_A10_files_whose_names_collide_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe_of("c", *names)


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["-x.c", "@x.c", "my prog.c", "x\ny.c", "$(id).c", "'q'.c", "{exe}.c", ".x.c"])
def test_A9_an_unsafe_name_never_becomes_an_option(name: str) -> None:
    recipe = recipe_of("c", name)
    assert recipe.compile[0][4] == f"./{name}"
    assert recipe.layout[0][0] == name


@given(st.text(max_size=40))
def test_A9_no_source_looks_like_an_option_or_a_response_file(stem: str) -> None:
    name = f"{stem}.c"
    try:
        toolchains.check_name(name)
    except UsageError:
        return
    word = recipe_of("c", name).compile[0][4]
    assert word[0] not in "-@"
    assert word.removeprefix("./") == name


def test_all_sources_of_the_language_are_compiled_and_other_files_only_placed() -> None:
    recipe = recipe_of("c", "main.c", "lib/b.c", "a.c", "a.h", "data.txt")
    assert recipe.compile[0][4:-1] == ("a.c", "lib/b.c", "main.c")
    assert [path for path, _ in recipe.layout] == ["a.c", "a.h", "data.txt", "lib/b.c", "main.c"]


def test_the_executable_avoids_the_names_of_the_user_s_files() -> None:
    recipe = recipe_of("c", "a.c", "exe", "exe_/b")
    assert recipe.compile[0][2:4] == ("-o", "exe__")
    assert recipe.run == (b"{dir}/exe__",)


def test_libraries_follow_the_sources() -> None:
    words = recipe_of("c", "a.c", flags=("-O3", "-lssl", "-Wall")).compile[0]
    assert words == ("/bin/gcc", "-O2", "-O3", "-Wall", "-o", "exe", "a.c", "-lssl", "-lm")


def test_the_user_s_edition_replaces_the_default() -> None:
    assert "--edition=2021" in recipe_of("rust", "a.rs").compile[0]
    words = recipe_of("rust", "a.rs", flags=("--edition=2018",)).compile[0]
    assert [word for word in words if "edition" in word] == ["--edition=2018"]


def test_flags_go_to_the_interpreter_when_nothing_is_compiled_and_are_refused_where_none_are_taken() -> None:
    assert recipe_of("python", "a.py", flags=("-O",)).run == (b"/bin/python3", b"-u", b"-O", b"{dir}/a.py")
    with pytest.raises(UsageError, match="tcl takes no --flags"):
        recipe_of("tcl", "a.tcl", flags=("-x",))


@pytest.mark.parametrize(
    ("language", "name", "first_line", "options"),
    [
        ("bash", "a.sh", b"#!/bin/bash -eu", [b"-eu"]),
        ("bash", "a.sh", b"#!/usr/bin/env -S bash -e -u", [b"-e", b"-u"]),
        ("bash", "a.sh", b"#!/bin/bash", []),
        ("bash", "a.sh", b"#!/bin/zsh -f", []),
        ("bash", "a.sh", b"# no", []),
        ("awk", "a.awk", b"#!/usr/bin/awk -f", []),
    ],
)
def test_options_of_a_first_line_are_kept(language: str, name: str, first_line: bytes, options: list[bytes]) -> None:
    run = recipe_of(language, name, source=first_line + b"\nx\n").run
    plain = recipe_of(language, name).run
    assert list(run) == [plain[0], *options, *plain[1:]]


def test_an_executable_is_placed_with_its_mode() -> None:
    assert [(path, file.executable) for path, file in recipe_of("executable", "tool", "x").layout] == [
        ("tool", True),
        ("x", False),
    ]


@given(st.lists(st.binary(max_size=20).filter(lambda arg: b"\0" not in arg)))
def test_arguments_are_data_whatever_they_hold(args: list[bytes]) -> None:
    recipe = recipe_of("python", "a.py", args=tuple(args))
    assert list(toolchains.argv_in(recipe.run, b"/b")[3:]) == args


@given(st.integers(0, 3), st.text("{}dirxargs/", max_size=8))
def test_an_argument_that_looks_like_a_placeholder_is_not_filled(braces: int, rest: str) -> None:
    arg = ("{" * braces + "dir}" + rest).encode()
    recipe = recipe_of("c", "a.c", args=(arg,))
    assert toolchains.argv_in(recipe.run, b"/b") == (b"/b/exe", arg)
    assert toolchains.placed(recipe.run[1]) == (False, arg)


def test_a_nul_in_an_argument_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        recipe_of("python", "a.py", args=(b"a\0b",))


def test_a_row_without_args_gets_them_at_its_end() -> None:
    row = Language(name="own", match=("*.own",), run=("own", "{src}"))
    recipe = toolchains.recipe(row, toolchain(row), program("own", "a.own", args=(b"1",)), b"", FACTS)
    assert recipe.run == (b"/bin/own", b"{dir}/a.own", b"1")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (Language("x", (), ()), "run is needed"),
        (Language("x", (), ("",)), "first word"),
        (Language("x", (), ("x", "a{args}")), "separate words"),
        (Language("x", (), ("x", "-f={src}")), "can only begin"),
        (Language("x", (), ("x",), compile=((),)), "lists of words"),
        (Language("x", (), ("x",), compile=(("cc", "{args}"),)), "belongs to run"),
        (Language("x", (), ("x", "{src}", "print {$1}"), compile=(("cc", "-o{exe}"),)), ""),
    ],
)
def test_an_invalid_row_of_a_user_is_explained(row: Language, fault: str) -> None:
    assert fault in toolchains.row_error(row)
    assert bool(fault) is bool(toolchains.row_error(row))


def test_a_command_that_the_node_lacks_is_named() -> None:
    with pytest.raises(UnknownLanguage, match="gcc or clang or cc"):
        toolchains.recipe(ROWS["c"], Toolchain("c", "", {}, ""), program("c", "a.c"), b"", FACTS)


def test_the_same_recipe_comes_back_from_json() -> None:
    recipe = recipe_of("java", "my prog.java", source=b"package a; public class B {}", args=(b"\xff",))
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe


# --- the build key ---------------------------------------------------------------------------------------------------


def key(
    row: Language = ROWS["c"],
    tools: Toolchain | None = None,
    asked: Program | None = None,
    facts: Facts = FACTS,
    source: bytes = b"",
) -> str:
    asked = asked or program(row.name, "a.c", "b.h")
    return toolchains.recipe(row, tools or toolchain(row), asked, source, facts).build_key


def _tools(**fields: object) -> Toolchain:
    return msgspec.structs.replace(toolchain(ROWS["c"]), **fields)


CHANGES: dict[str, Callable[[], str]] = {
    "row": lambda: key(msgspec.structs.replace(ROWS["c"], compile=(("gcc|clang|cc", "-O1", "-o", "{exe}", "{srcs}"),))),
    "row env": lambda: key(msgspec.structs.replace(ROWS["c"], env=(("A", "1"),))),
    "command": lambda: key(tools=_tools(commands={"gcc|clang|cc": "/usr/bin/clang"})),
    "fingerprint": lambda: key(tools=_tools(fingerprint="g")),
    "version": lambda: key(tools=_tools(version="2")),
    "flags": lambda: key(asked=program("c", "a.c", "b.h", flags=("-O3",))),
    "name": lambda: key(asked=program("c", "a.c", "c.h")),
    "entry": lambda: key(asked=program("c", "x.c", "b.h")),
    "content": lambda: key(asked=Program("c", "a.c", (source_file("a.c", b"1"), source_file("b.h")))),
    "other content": lambda: key(asked=Program("c", "a.c", (source_file("a.c"), source_file("b.h", b"1")))),
    "mode": lambda: key(asked=Program("c", "a.c", (source_file("a.c"), source_file("b.h", executable=True)))),
    "more files": lambda: key(asked=program("c", "a.c", "b.h", "c.h")),
    "architecture": lambda: key(facts=msgspec.structs.replace(FACTS, architecture="aarch64")),
    "libc": lambda: key(facts=msgspec.structs.replace(FACTS, libc="musl")),
    "system": lambda: key(facts=msgspec.structs.replace(FACTS, system="FreeBSD")),
}
SAME: dict[str, Callable[[], str]] = {
    "again": key,
    "arguments": lambda: key(asked=program("c", "a.c", "b.h", args=(b"1",))),
    "order of files": lambda: key(asked=Program("c", "a.c", (source_file("b.h"), source_file("a.c")))),
    "boot": lambda: key(facts=msgspec.structs.replace(FACTS, boot_id="other", cores=99, uptime_seconds=1.0)),
    "folder": lambda: key(facts=msgspec.structs.replace(FACTS, workdir="/elsewhere", uid=0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_can_change_a_build_changes_its_key(change: str) -> None:
    assert CHANGES[change]() != key()


def test_no_two_changes_share_a_key() -> None:
    assert len({change() for change in CHANGES.values()}) == len(CHANGES)


@pytest.mark.parametrize("same", SAME)
def test_what_cannot_change_a_build_leaves_its_key(same: str) -> None:
    assert SAME[same]() == key()


def test_a_script_has_a_key_of_its_content_too() -> None:
    one = key(ROWS["python"], asked=Program("python", "a.py", (source_file("a.py", b"1"),)))
    two = key(ROWS["python"], asked=Program("python", "a.py", (source_file("a.py", b"2"),)))
    assert len(one) == 64
    assert one != two


_flag = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(st.lists(_flag, max_size=4), st.lists(_flag, max_size=4))
def test_keys_are_equal_exactly_when_flags_are(one: list[str], two: list[str]) -> None:
    made = [key(asked=program("c", "a.c", flags=tuple(flags))) for flags in (one, two)]
    assert (made[0] == made[1]) is (one == two)


# --- names in messages -----------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_compiler_output_is_unchanged_when_no_file_was_renamed(words: bytes) -> None:
    assert toolchains.restore_names(words, recipe_of("c", "a.c")) == words


def test_a_name_with_a_prefix_is_shown_without_it() -> None:
    recipe = recipe_of("c", "my prog.c", "-lib.c")
    assert toolchains.restore_names(b"./my prog.c:1:2: error\n./-lib.c:3: warning\n", recipe) == (
        b"my prog.c:1:2: error\n-lib.c:3: warning\n"
    )


def test_a_module_file_with_an_odd_name_is_placed_as_main() -> None:
    for name in ("my prog.go", "-x.go", "x_test.go", "x_windows.go", "2.go"):
        recipe = recipe_of("go", name)
        assert [path for path, _ in recipe.layout] == ["main.go"]
        assert toolchains.restore_names(b"./main.go:1:1: x", recipe) == name.encode() + b":1:1: x"


def test_a_compiled_file_without_its_ending_gets_it() -> None:
    assert [path for path, _ in recipe_of("c", "prog.txt").layout] == ["prog.txt.c"]
    assert [path for path, _ in recipe_of("python", "prog.txt").layout] == ["prog.txt"]
