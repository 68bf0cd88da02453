"""Every language whose tools are on this machine: its recipe is placed, compiled and run here, as on a node.

Parametrised over the table. A missing tool skips on a laptop; the languages of MUST fail without it in CI.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from sshgrid import toolchains
from sshgrid.model import Facts, Language, Program, Recipe, SourceFile, Toolchain

MUST = frozenset({"c", "cpp", "java", "python", "sh", "bash", "perl", "javascript", "executable", "make"})
ROWS = {language.name: language for language in toolchains.LANGUAGES}
PATHS = {tool: path for tool in toolchains.tools(toolchains.LANGUAGES) if (path := shutil.which(tool))}
TIMEOUT_SECONDS = 120
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GO", "JAVA", "LC_"))} | {
    "LC_ALL": "C.UTF-8"
}

# Prints each argument in brackets on a separate line, then all of standard input, and exits with 3.
ECHO: Mapping[str, str] = {
    "c": """#include <stdio.h>
int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) printf("[%s]\\n", argv[i]);
  for (int c; (c = getchar()) != EOF;) putchar(c);
  return 3;
}
""",
    "cpp": """#include <iostream>
int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) std::cout << "[" << argv[i] << "]\\n";
  if (std::cin.peek() != EOF) std::cout << std::cin.rdbuf();
  return 3;
}
""",
    "java": """package deep.er; // class Wrong { static void main(String[] a) }
/** class Doc {} */
@SuppressWarnings({"class Fake { public static void main(String[] a) {} }"})
class Helper { }
public class Echo {
  public static void main(String... args) throws Exception {
    var out = new java.io.PrintStream(System.out, true, "UTF-8");
    for (String arg : args) out.print("[" + arg + "]\\n");
    System.in.transferTo(out);
    System.exit(3);
  }
}
""",
    "python": """import sys
for arg in sys.argv[1:]:
    sys.stdout.buffer.write(b"[" + arg.encode("utf-8", "surrogateescape") + b"]\\n")
sys.stdout.buffer.write(sys.stdin.buffer.read())
sys.exit(3)
""",
    "sh": 'for arg; do printf "[%s]\\n" "$arg"; done\ncat\nexit 3\n',
    "bash": 'all=("$@")\nfor arg in "${all[@]}"; do printf "[%s]\\n" "$arg"; done\ncat\nexit 3\n',
    "executable": '#!/bin/sh\nfor arg; do printf "[%s]\\n" "$arg"; done\ncat\nexit 3\n',
    "make": """NAME = echo it
PROGRAM := build/echo
all: $(PROGRAM)
.PHONY: all
$(PROGRAM): Makefile
\tmkdir -p build
\tprintf '%s\\n' '#!/bin/sh' 'for arg; do printf "[%s]\\n" "$$arg"; done' cat 'exit 3' >$@
\tchmod +x $@
""",
    "javascript": """const write = (text) => require("fs").writeSync(1, text);
for (const arg of process.argv.slice(2)) write("[" + arg + "]\\n");
write(require("fs").readFileSync(0));
process.exit(3);
""",
    "go": """package main

import ("fmt"; "io"; "os")

func main() {
    for _, arg := range os.Args[1:] { fmt.Printf("[%s]\\n", arg) }
    io.Copy(os.Stdout, os.Stdin)
    os.Exit(3)
}
""",
    "rust": """use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
fn main() {
    let mut out = io::stdout();
    for arg in std::env::args_os().skip(1) {
        out.write_all(b"[").unwrap();
        out.write_all(&arg.into_vec()).unwrap();
        out.write_all(b"]\\n").unwrap();
    }
    io::copy(&mut io::stdin(), &mut out).unwrap();
    std::process::exit(3);
}
""",
    "perl": 'print "[$_]\\n" for @ARGV; print while <STDIN>; exit 3;\n',
    "ruby": 'ARGV.each { |arg| print "[#{arg}]\\n" }\nprint $stdin.read\nexit 3\n',
    "php": """<?php
foreach (array_slice($argv, 1) as $arg) echo "[$arg]\\n";
echo stream_get_contents(STDIN);
exit(3);
""",
    "csharp": """class Echo { static int Main(string[] args) {
  foreach (var arg in args) System.Console.Write("[" + arg + "]\\n");
  System.Console.Write(System.Console.In.ReadToEnd());
  return 3;
} }
""",
    "lua": 'for i = 1, #arg do io.write("[", arg[i], "]\\n") end\nio.write(io.read("a"))\nos.exit(3)\n',
    "tcl": 'foreach arg $argv { puts "\\[$arg\\]" }\nputs -nonewline [read stdin]\nexit 3\n',
    "awk": """BEGIN {
  for (i = 1; i < ARGC; i++) printf "[%s]\\n", ARGV[i]
  while ((getline line < "-") > 0) print line
  exit 3
}
""",
    "fortran": """program echo
  use iso_fortran_env, only: iostat_end
  character(len=:), allocatable :: arg
  character(len=200) :: line
  integer :: i, length, status
  do i = 1, command_argument_count()
    call get_command_argument(i, length=length)
    allocate (character(len=length) :: arg)
    call get_command_argument(i, arg)
    write (*, '(3a)') '[', arg, ']'
    deallocate (arg)
  end do
  do
    read (*, '(a)', iostat=status) line
    if (status /= 0) exit
    write (*, '(a)') trim(line)
  end do
  call exit(3)
end program
""",
    "pascal": """program echo;
var i: integer; line: string;
begin
  for i := 1 to ParamCount do writeln('[', ParamStr(i), ']');
  while not eof do begin readln(line); writeln(line) end;
  halt(3);
end.
""",
    "lisp": """(dolist (arg (rest sb-ext:*posix-argv*)) (format t "[~a]~%" arg))
(loop for line = (read-line *standard-input* nil) while line do (write-line line))
(sb-ext:exit :code 3)
""",
    "prolog": """:- initialization(main).
main :- current_prolog_flag(argv, Argv), (append(_, [--|Args], Argv) -> true ; Argv = [_|Args]),
        forall(member(Arg, Args), format("[~w]~n", [Arg])),
        copy_stream_data(user_input, user_output), halt(3).
""",
}
ARGS = (
    b"two words",
    b'it\'s "quoted"',
    b"two\nlines",
    b"$(touch pwned) `touch pwned` $HOME",
    "gr\u00fc\u00df \u2192 \u65e5\u672c".encode(),
    b"-x",
    b"--help",
    b"*",
    b"name=value",
    b"@file",
    b"back\\slash\\n",
    b"{dir}/x",
    b"{{dir}",
    b"{args}",
    b"",
)
ODD_NAMES = ("-x", "@file", 'it\'s "my" $(touch pwned) {exe}', "two\nlines")


class Node:
    """A build folder and a current folder in a temporary place: does what a node does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workdir = folder / "workdir"
        self.cwd = folder / "cwd"
        self.cwd.mkdir(parents=True)
        self.facts = Facts("Linux", "x86_64", "glibc", 1, 1 << 30, "boot", os.getuid(), str(self.workdir), "session")

    def toolchain(self, language: Language) -> Toolchain:
        commands = toolchains.resolve(language, PATHS)
        assert commands is not None
        return Toolchain(language.name, "", commands, "fingerprint")

    def build(self, language: Language, program: Program, contents: Mapping[str, bytes]) -> Build:
        recipe = toolchains.recipe(language, self.toolchain(language), program, contents[program.entry], self.facts)
        return Build(self, recipe, {file.sha256: contents[file.name] for file in program.files})


class Build:
    """Build in another folder and rename it, like a node: a build must not depend on its folder."""

    def __init__(self, node: Node, recipe: Recipe, blobs: Mapping[str, bytes]) -> None:
        self.node, self.recipe = node, recipe
        self.folder = node.workdir / "builds" / recipe.build_key
        self.env = ENVIRONMENT | {name: value.decode() for name, value in recipe.env}
        aside = self.folder.with_name("aside")
        aside.mkdir(parents=True)
        for path, file in recipe.layout:
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_bytes(blobs[file.sha256])
            (aside / path).chmod(0o755 if file.executable else 0o644)
        self.code, said = 0, b""
        for command in recipe.compile:
            done = self._call(command, aside, b"")
            self.code, said = done.returncode, said + done.stdout + done.stderr
            if self.code:
                break
        self.said = toolchains.restore_names(said, recipe)
        aside.rename(self.folder)

    def run(self, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        assert self.code == 0, self.said.decode(errors="replace")
        argv = toolchains.argv_in(self.recipe.run, os.fsencode(self.folder))
        return self._call(argv, self.node.cwd, stdin)

    def _call(self, argv: Sequence[str | bytes], cwd: Path, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            argv, cwd=cwd, env=self.env, input=stdin, capture_output=True, check=False, timeout=TIMEOUT_SECONDS
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


def present(name: str) -> Language:
    """Return the row of a language. Skips the test when its tools are not installed here."""
    language = ROWS[name]
    if toolchains.resolve(language, PATHS) is None:
        missing = f"{name}: one of {', '.join(toolchains.commands(language))} is not installed here"
        if name in MUST and os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    if name == "objective-c" and not _compiles_objective_c():
        pytest.skip("objective-c: this gcc comes without it (smoke tests exist for such cases)")
    return language


def _compiles_objective_c() -> bool:
    gcc = PATHS.get("gcc", PATHS.get("clang", ""))
    words = [gcc, "-x", "objective-c", "-fsyntax-only", "-"]
    return subprocess.run(words, input=b"", capture_output=True, check=False, timeout=TIMEOUT_SECONDS).returncode == 0


def program_of(language: Language, files: Mapping[str, str], args: tuple[bytes, ...] = ()) -> Program:
    """Return a program of these files; the first one is the entry."""
    sources = tuple(
        SourceFile(name, hashlib.sha256(text.encode()).hexdigest(), len(text.encode())) for name, text in files.items()
    )
    return Program(language.name, sources[0].name, sources, args)


def build(node: Node, name: str, files: Mapping[str, str], args: tuple[bytes, ...] = ()) -> Build:
    language = present(name)
    return node.build(language, program_of(language, files, args), {each: files[each].encode() for each in files})


def file_name(language: Language, stem: str) -> str:
    """Return `stem` with the suffix of the language; a Makefile has one name."""
    if language.name == "make":
        return "Makefile"
    return stem + (language.match[0][1:] if language.match else "")


each_language = pytest.mark.parametrize("name", sorted(ROWS))
each_echo = pytest.mark.parametrize("name", sorted(ECHO))


# --- all languages ---------------------------------------------------------------------------------------------------


@each_language
def test_the_smoke_test_of_a_language_prints_hello(name: str, node: Node) -> None:
    language = present(name)
    program, source = toolchains.smoke_test(language) or pytest.fail("every row of the table has a hello")
    done = node.build(language, program, {program.entry: source}).run()
    assert (done.stdout, done.stderr, done.returncode) == (b"hello\n", b"", 0)


@each_language
def test_the_version_command_of_a_language_prints_a_version(name: str) -> None:
    language = present(name)
    if not language.version:
        pytest.skip("has no version command")
    argv = [PATHS[next(tool for tool in language.version[0].split("|") if tool in PATHS)], *language.version[1:]]
    done = subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS)
    version = toolchains.version_in(done.stdout + done.stderr)
    assert version
    assert toolchains.satisfies(version, ">=1") or name == "nasm"


@each_echo
def test_arguments_arrive_byte_for_byte_and_stdin_and_exit_code_pass(name: str, node: Node) -> None:
    language = present(name)
    made = build(node, name, {file_name(language, "echo"): ECHO[name]}, ARGS)
    done = made.run(b"first\nsecond\n")
    assert done.stdout.split(b"]\n") == (b"".join(b"[%s]\n" % arg for arg in ARGS) + b"first\nsecond\n").split(b"]\n")
    assert (done.stderr, done.returncode) == (b"", 3)
    assert list(node.cwd.iterdir()) == []


@each_echo
def test_a_language_runs_without_arguments(name: str, node: Node) -> None:
    language = present(name)
    done = build(node, name, {file_name(language, "echo"): ECHO[name]}).run(b"only input\n")
    assert (done.stdout, done.stderr, done.returncode) == (b"only input\n", b"", 3)


@pytest.mark.parametrize("stem", ODD_NAMES)
@each_echo
def test_A9_a_file_with_an_odd_name_compiles_and_runs(name: str, stem: str, node: Node) -> None:
    language = present(name)
    done = build(node, name, {file_name(language, stem): ECHO[name]}, (b"-a",)).run(b"in\n")
    assert (done.stdout, done.stderr, done.returncode) == (b"[-a]\nin\n", b"", 3)
    assert list(node.cwd.iterdir()) == []


@each_echo
def test_a_file_named_like_the_executable_does_not_collide(name: str, node: Node) -> None:
    language = present(name)
    files = {file_name(language, "echo"): ECHO[name], "exe": "data", "out/exe_": "data", "entry": "data"}
    done = build(node, name, files, (b"a",)).run()
    assert (done.stdout, done.returncode) == (b"[a]\n", 3)


# --- single languages ------------------------------------------------------------------------------------------------


def test_an_argument_that_is_not_utf8_arrives_in_c(node: Node) -> None:
    assert build(node, "c", {"echo.c": ECHO["c"]}, (b"\xff\xfe",)).run().stdout == b"[\xff\xfe]\n"


def test_a_file_without_the_ending_of_its_language_compiles_and_keeps_its_name_in_messages(node: Node) -> None:
    good = build(node, "c", {"prog.txt": ECHO["c"]})
    assert good.run().returncode == 3
    bad = build(Node(node.folder / "bad"), "c", {"prog.txt": "int main(void) { return nothing; }\n"})
    assert bad.code != 0
    assert b"prog.txt:1:" in bad.said
    assert b"prog.txt.c" not in bad.said


@pytest.mark.parametrize("name", ["my prog.c", "-x.c", "@at.c"])
def test_messages_show_the_users_name_of_a_c_file(name: str, node: Node) -> None:
    made = build(node, "c", {name: "int main(void) { return nothing; }\n"})
    assert made.code != 0
    assert made.said.startswith(name.encode() + b": ")


def test_java_messages_show_the_users_file_name(node: Node) -> None:
    made = build(node, "java", {"my prog.java": "package a.b;\npublic class Main { int x = nothing; }\n"})
    assert made.code != 0
    assert made.said.startswith(b"my prog.java:2: error:")
    assert b"Main.java" not in made.said


def test_several_java_files_are_one_program(node: Node) -> None:
    files = {
        "start.java": "package a; public class Main { public static void main(String[] x) { b.Other.say(); } }",
        "b/Other.java": 'package b; public class Other { public static void say() { System.out.println("both"); } }',
    }
    assert build(node, "java", files).run().stdout == b"both\n"


@pytest.mark.parametrize(
    "source",
    [
        "interface Main { static void main(String[] args) { System.out.println(1); } }",
        "enum Main { A, B { void f() {} }; public static void main(String[] args) { System.out.println(1); } }",
        "class First { void main(int x) {} } final class Second { static public void main(final String... a) "
        "throws Exception { System.out.println(1); } }",
        "record P(int x, int y) { public static void main(String[] args) { System.out.println(1); } }",
        "class A { String s = \"}\"; char c = '}'; /* } */ } class B { public static void main(String args[]) "
        "{ System.out.println(1); } }",
    ],
)
def test_the_java_type_with_main_is_started_whatever_its_kind(source: str, node: Node) -> None:
    assert build(node, "java", {"x.java": source}).run().stdout == b"1\n"


def test_several_c_files_are_linked_and_headers_are_found(node: Node) -> None:
    files = {
        "main.c": '#include "lib/say.h"\nint main(void) { return say(); }\n',
        "lib/say.h": "int say(void);\n",
        "lib/say.c": '#include "say.h"\nint say(void) { return 7; }\n',
    }
    assert build(node, "c", files).run().returncode == 7


def test_flags_reach_the_compiler_and_libraries_stand_after_the_sources(node: Node) -> None:
    language = present("c")
    text = "#include <zlib.h>\n" if Path("/usr/include/zlib.h").exists() else ""
    text += "#include <math.h>\nint main(int n, char **v) { return (int)sqrt((double)(n * SIXTEEN)); }\n"
    program = msgspec.structs.replace(program_of(language, {"m.c": text}), flags=("-lm", "-DSIXTEEN=16"))
    made = node.build(language, program, {"m.c": text.encode()})
    assert made.run().returncode == 4
    assert made.recipe.compile[0][-3:] == ("m.c", "-lm", "-lm")


def test_options_of_a_first_line_apply_to_scripts(node: Node) -> None:
    done = build(node, "bash", {"x.sh": "#!/bin/bash -e\nfalse\necho not reached\n"}).run()
    assert (done.stdout, done.returncode) == (b"", 1)


def test_a_makefile_without_a_program_runs_its_target_run(node: Node) -> None:
    files = {
        "Makefile": "all: data\ndata:\n\techo 1 >$@\nrun: data\n\t@cat data; printf '[%s]' $(ARGS)\n.PHONY: data\n"
    }
    args = (b"a b", b"$(touch pwned) $HOME", b"it's", b"#")
    done = build(node, "make", files, args).run()
    assert done.stdout == b"1\n[a b][$(touch pwned) $HOME][it's][#]", done.stderr
    assert list(node.cwd.iterdir()) == []


def test_a_user_row_works_without_smoke_test_or_version(node: Node) -> None:
    row = Language(name="shout", match=("*.shout",), run=("sh", "{src}"))
    text = 'echo "$1"!\n'
    done = node.build(row, program_of(row, {"a.shout": text}, (b"hey",)), {"a.shout": text.encode()}).run()
    assert done.stdout == b"hey!\n"
