"""Which builds may be used on another node: those that depend on nothing but their key."""

from __future__ import annotations

import msgspec
import pytest

from sshgrid import toolchains
from sshgrid.model import Language
from sshgrid.toolchains.recipes import suffix_of
from sshgrid.toolchains.sharing import compiler_environment
from tests.pure.toolchains.programs import FACTS, ROWS, program, toolchain


def is_shared(row: Language = ROWS["c"], *flags: str, env: dict[str, bytes] | None = None, libc: str = "musl") -> bool:
    suffix = suffix_of(row)
    asked = program(row.name, f"a{suffix}" if suffix else "Makefile", flags=flags)
    asked = msgspec.structs.replace(asked, env=tuple((env or {}).items()))
    facts = msgspec.structs.replace(FACTS, libc=libc)
    source = b"public class a {}" if row.name == "java" else b""
    return toolchains.recipe(row, toolchain(row), asked, source, facts).shared


@pytest.mark.parametrize("name", [row.name for row in toolchains.LANGUAGES if row.portable])
def test_a_build_of_a_portable_language_is_shared(name: str) -> None:
    assert ROWS[name].compile, "there is something to share"
    assert is_shared(ROWS[name])


# make: any commands; zig: for the processor of the machine; the others: with libraries of the machine.
@pytest.mark.parametrize("name", ["make", "zig", "crystal", "swift", "haskell", "nim", "cobol", "python", "sh"])
def test_a_build_of_another_language_is_not_shared(name: str) -> None:
    assert not ROWS[name].portable
    assert name == "make" or not is_shared(ROWS[name])


@pytest.mark.parametrize(
    "flags",
    [
        ("-march=native",),
        ("-mcpu=native",),
        ("-mtune=native",),
        ("-Ctarget-cpu=native",),
        ("-C", "target-cpu=native"),
        ("-xHost",),
        ("-lssl",),
        ("-l", "ssl"),
        ("-Clink-arg=-lssl",),
        ("-L.",),
        ("-I/opt/include",),
        ("-I", "/opt/include"),
        ("--sysroot=/opt",),
        ("-Wl,-rpath,/opt",),
        ("-Wl,--rpath=.",),
        ("-B/opt/bin",),
        ("/opt/lib/libx.a",),
        ("@more",),
        ("-I~/include",),
    ],
)
def test_a_machine_specific_flag_prevents_sharing(flags: tuple[str, ...]) -> None:
    assert not is_shared(ROWS["c"], *flags)


@pytest.mark.parametrize(
    "flags",
    [(), ("-O3", "-Wall"), ("-march=x86-64-v3",), ("-std=c17",), ("-pthread", "-lm"), ("-DN=1",), ("-Iinclude",)],
)
def test_other_flags_do_not_prevent_sharing(flags: tuple[str, ...]) -> None:
    assert is_shared(ROWS["c"], *flags)


@pytest.mark.parametrize("libc", ["", "unknown"])
def test_without_a_known_c_library_nothing_is_shared(libc: str) -> None:
    assert not is_shared(libc=libc)


@pytest.mark.parametrize("name", ["RUSTFLAGS", "CFLAGS", "CPATH", "LIBRARY_PATH", "PATH", "GOAMD64", "CC", "HOME"])
def test_a_variable_that_compilers_read_changes_the_key_and_prevents_sharing(name: str) -> None:
    def key(**env: bytes) -> str:
        asked = msgspec.structs.replace(program("c", "a.c"), env=tuple(env.items()))
        return toolchains.recipe(ROWS["c"], toolchain(ROWS["c"]), asked, b"", FACTS).build_key

    assert not is_shared(env={name: b"x"})
    assert len({key(), key(**{name: b"x"}), key(**{name: b"y"})}) == 3


@pytest.mark.parametrize("name", ["SEED", "N", "GOAL", "ACCOUNT", "LDAP", "INPUT_FILE"])
def test_a_variable_that_compilers_do_not_read_changes_nothing(name: str) -> None:
    assert compiler_environment([(name, b"x")]) == ()
    assert is_shared(env={name: b"x"})


def test_nodes_of_one_kind_share_a_key_and_others_do_not() -> None:
    def key(fingerprint: str, kind: str) -> str:
        tools = msgspec.structs.replace(toolchain(ROWS["c"]), fingerprint=fingerprint, kind=kind)
        return toolchains.recipe(ROWS["c"], tools, program("c", "a.c"), b"", FACTS).build_key

    assert key("f1", "k1") == key("f2", "k1")
    assert len({key("f1", "k1"), key("f1", "k2"), key("f1", ""), key("f2", "")}) == 4
