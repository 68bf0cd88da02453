"""What a Makefile builds, and how it is started."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.errors import UsageError
from sshgrid.toolchains import makefile
from tests.pure.toolchains.programs import recipe_of

# --- make ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "binary"),
    [
        ("prog: prog.c\n\tcc -o prog prog.c\n", "prog"),
        ("all: prog other\nprog: x\n", "prog"),
        (".PHONY: all\nall: bin/tool\n", "bin/tool"),
        (".PHONY: everything\neverything: tool\ntool:\n", "tool"),
        ("NAME = app\nOUT := build/$(NAME)\nall: ${OUT}\n$(OUT): main.c\n\tcc\n", "build/app"),
        ("ifdef X\nendif\nCFLAGS += -Dx=a:b\n%.o: %.c\n\tcc\nprog: a.o\n", "prog"),
        (".DEFAULT_GOAL := second\nfirst:\nsecond:\n", "second"),
        ("default: build\nbuild: x\n", "x"),
        ("a \\\n b: c\n", "a"),
        ("prog : X=1\nprog: main.o | dir\n", "prog"),
        ("# prog: x\nreal: ; cc\n", "real"),
    ],
)
def test_the_program_of_a_makefile_is_its_first_target_or_the_first_behind_it(text: str, binary: str) -> None:
    assert makefile.find_program(text.encode()) == makefile.MakeProgram(binary)


@pytest.mark.parametrize(
    ("text", "builds"),
    [
        ("all:\n\techo\nrun:\n\t./x\n", True),
        ("run: x\n\t./x\nx:\n", False),
        ("all: $(shell find)\nrun:\n", True),
        ("all: ../evil\nrun:\n", True),
        ("all: all\nrun:\n", True),
    ],
)
def test_a_makefile_without_a_program_has_its_target_run_called(text: str, builds: bool) -> None:
    assert makefile.find_program(text.encode()) == makefile.MakeProgram("", builds)


def test_a_makefile_without_program_and_run_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match="does not say what to run") as caught:
        recipe_of("make", "Makefile", source=b"all:\n\techo hi\n")
    assert "run:" in caught.value.hint


def test_a_program_made_by_make_is_run_from_the_build_folder() -> None:
    recipe = recipe_of("make", "Makefile", "m.c", source=b"all: bin/prog\n", args=(b"1",), flags=("DEBUG=1",))
    assert recipe.compile == (("/bin/make", "-f", "Makefile", "DEBUG=1"),)
    assert recipe.run == (b"{dir}/bin/prog", b"1")


def test_the_target_run_gets_quoted_arguments_and_no_newline() -> None:
    source = b"run: x\n\t./x $(ARGS)\n"
    recipe = recipe_of("make", "Makefile", source=source, args=(b"a b", b"$x"))
    assert recipe.compile == ()
    assert recipe.run[-2:] == (b"run", b"ARGS='a b' '$$x'")
    assert recipe_of("make", "Makefile", source=source).run[-1] == b"run"
    with pytest.raises(UsageError, match="newline"):
        recipe_of("make", "Makefile", source=source, args=(b"a\nb",))


@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(["a", ":", "=", "$(a)", "\n", "\t", "all", "run", " ", "%", "."])).map("".join),
    )
)
def test_any_makefile_gives_a_program_in_its_folder_or_a_usage_error(text: str) -> None:
    try:
        found = makefile.find_program(text.encode("utf-8", "surrogatepass"))
    except UsageError:
        return
    assert not found.binary.startswith("/")
    assert ".." not in found.binary.split("/")
