"""The table of languages: how each is recognised, compiled and run, how its version is read, and its smoke test.

One row is one language; to add a language, add a row. Commands are argument lists, never shell text, and a row refuses
nothing and decides nothing: `toolchains` chooses rows and `recipes` fills in their placeholders.
"""

from __future__ import annotations

import msgspec

from sshgrid.model import Language

_C = '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n'
_CPP = '#include <iostream>\nint main() { std::cout << "hello\\n"; }\n'
_CSHARP = 'class Hello { static void Main() { System.Console.WriteLine("hello"); } }\n'
_JAVA = 'class Hello { public static void main(String[] args) { System.out.println("hello"); } }\n'
_GO = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'
_COBOL = (
    "       IDENTIFICATION DIVISION.\n       PROGRAM-ID. HELLO.\n       PROCEDURE DIVISION.\n"
    '           DISPLAY "hello".\n           STOP RUN.\n'
)
# every zig since 0.6 has std.os.linux; std.io changes with each release
_ZIG = 'const std = @import("std");\npub fn main() void {\n    _ = std.os.linux.write(1, "hello\\n", 6);\n}\n'
_NASM = (
    "global _start\nsection .text\n_start:\n    mov rax, 1\n    mov rdi, 1\n    mov rsi, text\n    mov rdx, 6\n"
    '    syscall\n    mov rax, 60\n    xor rdi, rdi\n    syscall\nsection .data\ntext: db "hello", 10\n'
)
_OTP_RELEASE = 'io:format("~s~n", [erlang:system_info(otp_release)]), halt().'

# HotSpot has a file for each JVM under its process number. In another PID namespace a JVM may have the same number, and
# then prints a warning on the program's standard output. Other JVMs ignore the option.
_JVM = ("-XX:+IgnoreUnrecognizedVMOptions", "-XX:-UsePerfData")
# A compilation is too short for the second compiler of the JVM: without it, half the CPU time for one class or 400.
_JAVAC = tuple(f"-J{option}" for option in (*_JVM, "-XX:TieredStopAtLevel=1"))

# A cache outside the account's home; GOTOOLCHAIN=local prevents the download of another go.
_GO_ENV = (
    ("CGO_ENABLED", "0"),
    ("GOCACHE", "{cache}/go"),
    ("GOPATH", "{cache}/gopath"),
    ("GOFLAGS", "-modcacherw"),
    ("GOTOOLCHAIN", "local"),
)

_ON = (
    Language(
        name="c",
        match=("*.c",),
        compile=(("gcc|clang|cc", "-O2", "{flags}", "-o", "{exe}", "{srcs}", "{libs}", "-lm"),),
        run=("{exe}", "{args}"),
        version=("gcc|clang|cc", "--version"),
        hello=_C,
        address_space_limit=True,
        portable=True,
    ),
    Language(
        name="cpp",
        match=("*.cpp", "*.cc", "*.cxx", "*.C"),
        compile=(("g++|clang++|c++", "-O2", "-std=c++17", "{flags}", "-o", "{exe}", "{srcs}", "{libs}"),),
        run=("{exe}", "{args}"),
        version=("g++|clang++|c++", "--version"),
        hello=_CPP,
        address_space_limit=True,
        portable=True,
    ),
    Language(
        name="java",
        match=("*.java",),
        # javac before 9 does not make the -d folder
        compile=(
            ("mkdir", "-p", "{out}"),
            ("javac", *_JAVAC, "-encoding", "UTF-8", "-d", "{out}", "{flags}", "{srcs}"),
        ),
        run=("java", *_JVM, "-cp", "{out}", "{main}", "{args}"),
        version=("javac", *_JAVAC, "-version"),
        hello=_JAVA,
        portable=True,
    ),
    Language(
        name="python",
        match=("*.py",),
        run=("python3", "-u", "{flags}", "{src}", "{args}"),
        version=("python3", "--version"),
        interpreters=("python3", "python"),
        hello='print("hello")\n',
    ),
    Language(
        name="sh",
        match=("*.sh",),
        run=("sh", "{flags}", "{src}", "{args}"),
        interpreters=("sh", "dash", "ash"),
        hello="echo hello\n",
    ),
    Language(
        name="bash",
        match=("*.bash", "*.sh"),
        run=("bash", "{flags}", "{src}", "{args}"),
        version=("bash", "--version"),
        interpreters=("bash",),
        hello="words=(hello)\necho ${words[0]}\n",
    ),
    Language(
        name="javascript",
        match=("*.js", "*.mjs", "*.cjs"),
        run=("node|nodejs", "{flags}", "{src}", "{args}"),
        version=("node|nodejs", "--version"),
        interpreters=("node", "nodejs"),
        hello='console.log("hello")\n',
    ),
    Language(
        name="go",
        match=("*.go",),
        compile=(("go", "build", "-o", "{exe}", "{flags}", "{srcs}"),),
        run=("{exe}", "{args}"),
        version=("go", "version"),
        hello=_GO,
        env=_GO_ENV,
        portable=True,
    ),
    Language(
        name="rust",
        match=("*.rs",),
        # the default crate name is the file's name, which may have any character
        compile=(("rustc", "-O", "--edition=2021", "--crate-name=main", "{flags}", "-o", "{exe}", "{src}"),),
        run=("{exe}", "{args}"),
        version=("rustc", "--version"),
        hello='fn main() { println!("hello"); }\n',
        address_space_limit=True,
        portable=True,
    ),
    Language(
        name="perl",
        match=("*.pl", "*.perl"),
        run=("perl", "{flags}", "{src}", "{args}"),
        version=("perl", "-e", 'print "$^V\\n"'),
        interpreters=("perl",),
        hello='print "hello\\n";\n',
    ),
    Language(
        name="ruby",
        match=("*.rb",),
        run=("ruby", "{flags}", "{src}", "{args}"),
        version=("ruby", "--version"),
        interpreters=("ruby",),
        hello='puts "hello"\n',
    ),
    Language(
        name="php",
        match=("*.php",),
        run=("php", "{flags}", "{src}", "{args}"),
        version=("php", "--version"),
        interpreters=("php",),
        hello='<?php echo "hello\\n";\n',
    ),
    Language(
        name="csharp",
        match=("*.cs",),
        compile=(("mcs", "-optimize+", "{flags}", "-out:{exe}", "{srcs}"),),
        run=("mono", "{exe}", "{args}"),
        version=("mcs", "--version"),
        hello=_CSHARP,
        portable=True,
    ),
    Language(
        name="executable",
        match=(),  # recognised by its first bytes and mode x
        run=("{src}", "{args}"),
        hello="#!/bin/sh\necho hello\n",
    ),
    Language(
        name="make",
        match=("Makefile", "makefile", "GNUmakefile"),
        compile=(("make|gmake", "-f", "{src}", "{flags}"),),
        run=("{exe}", "{args}"),  # makefile.py finds {exe}
        version=("make|gmake", "--version"),
        hello="hello:\n\tprintf '#!/bin/sh\\necho hello\\n' >$@\n\tchmod +x $@\n",
    ),
)

_OFFERED = (
    Language(
        name="kotlin",
        match=("*.kt",),
        compile=(("kotlinc", "{flags}", "{srcs}", "-include-runtime", "-d", "{exe}.jar"),),
        run=("java", *_JVM, "-jar", "{exe}.jar", "{args}"),
        version=("kotlinc", "-version"),
        hello='fun main() { println("hello") }\n',
        portable=True,
    ),
    Language(
        name="scala",
        match=("*.scala", "*.sc"),
        run=("scala", "{flags}", "{src}", "{args}"),
        version=("scala", "-version"),
        interpreters=("scala",),
        hello='object Hello { def main(args: Array[String]): Unit = println("hello") }\n',
    ),
    Language(
        name="groovy",
        match=("*.groovy",),
        run=("groovy", "{flags}", "{src}", "{args}"),
        version=("groovy", "--version"),
        interpreters=("groovy",),
        hello='println "hello"\n',
    ),
    Language(
        name="clojure",
        match=("*.clj",),
        run=("clojure|clj", "{flags}", "-M", "{src}", "{args}"),
        version=("clojure|clj", "--version"),
        interpreters=("clojure", "clj"),
        hello='(println "hello")\n',
    ),
    Language(
        name="typescript",
        match=("*.ts", "*.mts"),
        run=("tsx|bun|ts-node", "{flags}", "{src}", "{args}"),
        version=("tsx|bun|ts-node", "--version"),
        interpreters=("tsx", "bun", "ts-node"),
        hello='const word: string = "hello";\nconsole.log(word);\n',
    ),
    Language(
        name="lua",
        match=("*.lua",),
        run=("lua|lua5.4|lua5.3|luajit", "{flags}", "{src}", "{args}"),
        version=("lua|lua5.4|lua5.3|luajit", "-v"),
        interpreters=("lua", "lua5.4", "lua5.3", "luajit"),
        hello='print("hello")\n',
    ),
    Language(
        name="r",
        match=("*.R", "*.r"),
        run=("Rscript", "{flags}", "{src}", "{args}"),
        version=("Rscript", "--version"),
        interpreters=("Rscript",),
        hello='cat("hello\\n")\n',
    ),
    Language(
        name="julia",
        match=("*.jl",),
        run=("julia", "{flags}", "{src}", "{args}"),
        version=("julia", "--version"),
        interpreters=("julia",),
        hello='println("hello")\n',
    ),
    Language(
        name="octave",
        match=("*.m",),
        run=("octave-cli|octave", "--quiet", "--no-window-system", "{flags}", "{src}", "{args}"),
        version=("octave-cli|octave", "--version"),
        interpreters=("octave", "octave-cli"),
        hello='printf("hello\\n");\n',
    ),
    Language(
        name="haskell",
        match=("*.hs",),
        compile=(("ghc", "-O", "{flags}", "-o", "{exe}", "{src}"),),
        run=("{exe}", "{args}"),
        version=("ghc", "--version"),
        hello='main :: IO ()\nmain = putStrLn "hello"\n',
    ),
    Language(
        name="ocaml",
        match=("*.ml",),
        compile=(("ocamlopt|ocamlc", "{flags}", "-o", "{exe}", "{srcs}"),),
        run=("{exe}", "{args}"),
        version=("ocamlopt|ocamlc", "-version"),
        hello='let () = print_endline "hello"\n',
        portable=True,
    ),
    Language(
        name="fortran",
        match=("*.f90", "*.f95", "*.f03", "*.f08", "*.f", "*.for"),
        compile=(("gfortran|flang", "-O2", "{flags}", "-o", "{exe}", "{srcs}", "{libs}"),),
        run=("{exe}", "{args}"),
        version=("gfortran|flang", "--version"),
        hello="program hello\n  write (*, '(a)') 'hello'\nend program\n",
        portable=True,
    ),
    Language(
        name="pascal",
        match=("*.pas", "*.pp"),
        compile=(("fpc", "-O2", "-l-", "-vew", "{flags}", "-o{exe}", "{src}"),),
        run=("{exe}", "{args}"),
        version=("fpc", "-iV"),
        hello="program hello;\nbegin\n  writeln('hello');\nend.\n",
        portable=True,
    ),
    Language(
        name="d",
        match=("*.d",),
        compile=(("ldc2|dmd", "-O", "{flags}", "-of={exe}", "{srcs}"),),
        run=("{exe}", "{args}"),
        version=("ldc2|dmd", "--version"),
        hello='import std.stdio;\nvoid main() { writeln("hello"); }\n',
        portable=True,
    ),
    Language(
        name="nim",
        match=("*.nim",),
        compile=(("nim", "c", "--hints:off", "-d:release", "--nimcache:{out}", "{flags}", "-o:{exe}", "{src}"),),
        run=("{exe}", "{args}"),
        version=("nim", "--version"),
        hello='echo "hello"\n',
    ),
    Language(
        name="zig",
        match=("*.zig",),
        compile=(("zig", "build-exe", "-OReleaseSafe", "{flags}", "-femit-bin={exe}", "{src}"),),
        run=("{exe}", "{args}"),
        version=("zig", "version"),
        hello=_ZIG,
        env=(("ZIG_GLOBAL_CACHE_DIR", "{cache}/zig"),),
    ),
    Language(
        name="crystal",
        match=("*.cr",),
        compile=(("crystal", "build", "{flags}", "-o", "{exe}", "{src}"),),
        run=("{exe}", "{args}"),
        version=("crystal", "--version"),
        hello='puts "hello"\n',
        env=(("CRYSTAL_CACHE_DIR", "{cache}/crystal"),),
    ),
    Language(
        name="swift",
        match=("*.swift",),
        compile=(("swiftc", "-O", "{flags}", "-o", "{exe}", "{srcs}"),),
        run=("{exe}", "{args}"),
        version=("swiftc", "--version"),
        hello='print("hello")\n',
    ),
    Language(
        name="objective-c",
        match=("*.m",),
        compile=(("gcc|clang", "-O2", "{flags}", "-o", "{exe}", "{srcs}", "{libs}", "-lobjc", "-lm"),),
        run=("{exe}", "{args}"),
        version=("gcc|clang", "--version"),
        hello='#import <stdio.h>\nint main(void) { puts("hello"); return 0; }\n',
        portable=True,
    ),
    Language(
        name="dart",
        match=("*.dart",),
        compile=(("dart", "compile", "exe", "{flags}", "-o", "{exe}", "{src}"),),
        run=("{exe}", "{args}"),
        version=("dart", "--version"),
        hello="void main() { print('hello'); }\n",
        portable=True,
    ),
    Language(
        name="elixir",
        match=("*.exs", "*.ex"),
        run=("elixir", "{flags}", "{src}", "{args}"),
        version=("elixir", "--short-version"),
        interpreters=("elixir",),
        hello='IO.puts("hello")\n',
    ),
    Language(
        name="erlang",
        match=("*.erl", "*.escript"),
        run=("escript", "{flags}", "{src}", "{args}"),
        version=("erl", "-noshell", "-eval", _OTP_RELEASE),
        interpreters=("escript",),
        hello='#!/usr/bin/env escript\nmain(_) -> io:format("hello~n").\n',
    ),
    Language(
        name="lisp",
        match=("*.lisp", "*.lsp", "*.cl"),
        run=("sbcl", "{flags}", "--script", "{src}", "{args}"),
        version=("sbcl", "--version"),
        interpreters=("sbcl",),
        hello='(format t "hello~%")\n',
    ),
    Language(
        name="racket",
        match=("*.rkt",),
        run=("racket", "{flags}", "{src}", "{args}"),
        version=("racket", "--version"),
        interpreters=("racket",),
        hello='#lang racket/base\n(displayln "hello")\n',
    ),
    Language(
        name="prolog",
        match=("*.pro", "*.prolog", "*.pl"),
        # a program starts by `:- initialization(main).`; halt instead of the interactive toplevel after it
        run=("swipl", "-q", "-t", "halt", "{flags}", "{src}", "--", "{args}"),
        version=("swipl", "--version"),
        interpreters=("swipl",),
        hello=":- initialization(main).\nmain :- write(hello), nl.\n",
    ),
    Language(
        name="cobol",
        match=("*.cob", "*.cbl"),
        compile=(("cobc", "-x", "{flags}", "-o", "{exe}", "{srcs}"),),
        run=("{exe}", "{args}"),
        version=("cobc", "--version"),
        hello=_COBOL,
    ),
    Language(
        name="nasm",
        match=("*.asm", "*.nasm"),
        compile=(
            ("nasm", "-f", "elf64", "{flags}", "-o", "{exe}.o", "{src}"),
            ("ld", "-o", "{exe}", "{exe}.o"),
        ),
        run=("{exe}", "{args}"),
        version=("nasm", "-v"),
        hello=_NASM,
        portable=True,
    ),
    Language(
        name="tcl",
        match=("*.tcl",),
        run=("tclsh", "{src}", "{args}"),
        interpreters=("tclsh",),
        hello="puts hello\n",
    ),
    Language(
        name="awk",
        match=("*.awk",),
        run=("awk|gawk|mawk", "{flags}", "-f", "{src}", "--", "{args}"),
        interpreters=("awk", "gawk", "mawk"),
        hello='BEGIN { print "hello" }\n',
    ),
    Language(
        name="sql",
        match=("*.sql",),
        # SQL has no arguments: words after the file are SQL that runs after it
        run=("sqlite3", "-batch", "-bail", "{flags}", "-init", "{src}", ":memory:", "{args}"),
        version=("sqlite3", "--version"),
        hello="SELECT 'hello';\n",
    ),
)

LANGUAGES: tuple[Language, ...] = (*_ON, *(msgspec.structs.replace(language, default=False) for language in _OFFERED))

# Other names that --lang accepts.
ALIASES = {
    "asm": "nasm",
    "c#": "csharp",
    "c++": "cpp",
    "cs": "csharp",
    "cxx": "cpp",
    "golang": "go",
    "js": "javascript",
    "makefile": "make",
    "node": "javascript",
    "objc": "objective-c",
    "py": "python",
    "python3": "python",
    "rb": "ruby",
    "rs": "rust",
    "shell": "sh",
    "sqlite": "sql",
    "ts": "typescript",
}
