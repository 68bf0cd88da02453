"""Programs on real SSH hosts: output and exit code are the same as in a local run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.whole.grid import CommandResult, Grid
from tests.whole.samples import FOREVER

pytestmark = pytest.mark.lab

HELLO = {
    "hello.py": """import sys
print("hello", sys.argv[1:])
print("oops", file=sys.stderr)
sys.exit(3)
""",
    "hello.c": """#include <stdio.h>
int main(int argc, char **argv) {
    printf("hello");
    for (int i = 1; i < argc; i++) printf(" [%s]", argv[i]);
    printf("\\n");
    fprintf(stderr, "oops\\n");
    return 3;
}
""",
    "hello.cpp": """#include <iostream>
int main(int argc, char **argv) {
    std::cout << "hello";
    for (int i = 1; i < argc; i++) std::cout << " [" << argv[i] << "]";
    std::cout << std::endl;
    std::cerr << "oops" << std::endl;
    return 3;
}
""",
    "hello.java": """public class hello {
    public static void main(String[] args) {
        System.out.println("hello " + java.util.Arrays.toString(args));
        System.err.println("oops");
        System.exit(3);
    }
}
""",
}
ECHO = "import sys\nsys.stdout.write('\\0'.join(sys.argv[1:]))\n"
CAT = "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())\n"
HARD_WORDS = [
    "a",
    "b c",
    'it\'s "quoted"',
    "two\nlines\n",
    "$(touch /tmp/gotcha) `id` $HOME ${x}",
    "grüße 你好 🎉",
    "-n",
    "--help",
    "",
    "*",
    "\\n",
    "!!",
    "a;b|c&d>e",
    "\t",
]


def run_here(path: Path, words: list[str]) -> CommandResult:
    """Compile and run the program on this machine."""
    source, built = str(path), str(path.parent / "built")
    match path.suffix:
        case ".py":
            argv = [sys.executable, source]
        case ".c":
            subprocess.run(["gcc", "-O2", "-o", built, source], check=True)
            argv = [built]
        case ".cpp":
            subprocess.run(["g++", "-O2", "-std=c++17", "-o", built, source], check=True)
            argv = [built]
        case _:
            subprocess.run(["javac", "-d", built, source], check=True)
            argv = ["java", "-cp", built, path.stem]
    done = subprocess.run([*argv, *words], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    return CommandResult(done.returncode, done.stdout, done.stderr.decode())


@pytest.mark.parametrize("name", HELLO)
def test_output_and_exit_code_equal_those_of_a_local_run(grid: Grid, name: str) -> None:
    path = grid.write(name, HELLO[name])
    assert grid("run", name, "a", "b c") == run_here(path, ["a", "b c"])


@pytest.mark.parametrize("name", ["args.py", "args.c"])
def test_arguments_arrive_unchanged(grid: Grid, name: str) -> None:
    print_all = "#include <unistd.h>\n#include <string.h>\nint main(int n, char **w) {"
    print_all += "for (int i = 1; i < n; i++) write(1, w[i], strlen(w[i]) + (i < n - 1)); }\n"
    grid.write(name, ECHO if name.endswith(".py") else print_all)
    done = grid("run", name, *HARD_WORDS)
    assert (done.code, done.text.split("\0")) == (0, HARD_WORDS)


def test_arguments_that_are_not_utf8_arrive_unchanged(grid: Grid) -> None:
    grid.write("args.py", "import os, sys\nos.write(1, os.fsencode(sys.argv[1]))\n")
    assert grid("run", "args.py", b"\xff\xfe\x80").out == b"\xff\xfe\x80"


def test_words_after_the_file_are_arguments_of_the_program(grid: Grid) -> None:
    grid.write("args.py", ECHO)
    done = grid("run", "args.py", "--json", "-d", "--on", "h9", "--", "-i", "x")
    assert done.text.split("\0") == ["--json", "-d", "--on", "h9", "--", "-i", "x"]


@pytest.mark.parametrize(
    "name",
    [
        "a b.py",
        "it's.py",
        'say "hi".py',
        "-n.py",
        "two\nlines.py",
        "@name.py",
        "$(id).py",
        "ünï.py",
        "{src}.py",
        "*.py",
    ],
)
def test_A9_a_python_file_with_an_unusual_name_runs(grid: Grid, name: str) -> None:
    grid.write(name, ECHO)
    assert grid("run", f"./{name}", "x", "y").text == "x\0y"


@pytest.mark.parametrize("name", ["a b.c", "-o.c", "it's.c", "@name.c", "two\nlines.c", "x;y.c"])
def test_A9_a_c_file_with_an_unusual_name_runs(grid: Grid, name: str) -> None:
    grid.write(name, '#include <stdio.h>\nint main(void) { printf("%s", "fine"); }\n')
    done = grid("run", f"./{name}")
    assert (done.code, done.out) == (0, b"fine"), done


def test_A9_a_java_file_with_an_unusual_name_and_a_package_runs(grid: Grid) -> None:
    text = "package org.example.deep;\npublic class Inner {\n  public static void main(String... words) "
    text += "{ System.out.println(Inner.class.getName() + words.length); }\n}\nclass Other {}\n"
    grid.write("it's - not the class.java", text)
    done = grid("run", "it's - not the class.java", "x")
    assert (done.code, done.text) == (0, "org.example.deep.Inner1\n"), done


# --- how programs end -------------------------------------------------------------------------------------------------

SEGV = "int main(void) { volatile int *nowhere = 0; return *nowhere; }\n"


@pytest.mark.parametrize("code", [0, 1, 3, 126, 127, 254])
def test_run_exits_with_the_exit_code_of_the_program(grid: Grid, code: int) -> None:
    grid.write("leave.py", f"import sys; sys.exit({code})")
    assert grid("run", "leave.py").code == code
    assert grid.last_job()["exit_code"] == code
    assert grid.last_job()["state"] == ("COMPLETED" if code == 0 else "FAILED")


def test_A42_exit_code_255_of_a_program_is_not_a_host_error(grid: Grid) -> None:
    grid.write("leave.py", "import sys; sys.exit(255)")
    done = grid("run", "leave.py")
    assert (done.code, done.err) == (255, "")
    assert [attempt["outcome"] for attempt in grid.last_job()["attempts"]] != []
    assert len(grid.last_job()["attempts"]) == 1


def test_A42_a_segmentation_fault_exits_with_139(grid: Grid) -> None:
    grid.write("segv.c", SEGV)
    assert grid("run", "segv.c").code == 139
    assert grid.last_job()["signal"] == 11


def test_A42_a_sigkill_exits_with_137_and_is_shown_as_signal_9(grid: Grid) -> None:
    grid.write("die.py", "import os\nprint('before', flush=True)\nos.kill(os.getpid(), 9)\n")
    done = grid("run", "die.py")
    assert (done.code, done.out) == (137, b"before\n")
    job = grid.last_job()
    assert (job["state"], job["signal"], len(job["attempts"])) == ("FAILED", 9, 1)


def test_a_compile_error_names_the_file_of_the_user(grid: Grid) -> None:
    grid.write("my bad.c", "int main(void) { return nothing; }\n")
    done = grid("run", "my bad.c")
    assert (done.code, done.out) == (126, b"")
    assert "my bad.c:1:" in done.err
    assert "nothing" in done.err
    assert "/var/tmp" not in done.err
    assert grid.last_job()["state"] == "COMPILE_ERROR"


def test_a_java_compile_error_names_the_file_of_the_user(grid: Grid) -> None:
    grid.write("Wrong.java", "public class Wrong { public static void main(String[] a) { int x = y; } }\n")
    done = grid("run", "Wrong.java")
    assert (done.code, "Wrong.java:1:" in done.err, "/var/tmp" in done.err) == (126, True, False), done


def test_the_time_limit_exits_with_124_and_leaves_nothing(grid: Grid) -> None:
    grid.write("forever.py", FOREVER)
    done = grid("run", "--time-limit", "1s", "forever.py")
    assert (done.code, done.out) == (124, b"begun\n")
    assert grid.last_job()["state"] == "TIMEOUT"


def test_children_that_outlive_their_parent_end_with_the_run(grid: Grid) -> None:
    grid.write(
        "fork.py",
        """import os, signal, sys
for kind in ("child", "session", "double"):
    if os.fork() == 0:
        if kind != "child": os.setsid()
        if kind == "double" and os.fork(): os._exit(0)
        if kind == "double":
            for number in (0, 1, 2): os.close(number)
        while True: signal.pause()
print("parent is done", flush=True)
sys.exit(4)
""",
    )
    done = grid("run", "fork.py")
    assert (done.code, done.out) == (4, b"parent is done\n")  # the fixture checks for processes


# --- standard input ---------------------------------------------------------------------------------------------------


def test_stdin_can_be_a_pipe_a_file_devnull_or_closed(grid: Grid) -> None:
    grid.write("cat.py", CAT)
    path = grid.write("in.bin", bytes(range(256)) * 300)
    assert grid("run", "cat.py", stdin=b"through\na pipe").out == b"through\na pipe"
    with path.open("rb") as file:
        assert grid("run", "cat.py", stdin=file.fileno()).out == path.read_bytes()
    assert grid("run", "--stdin", "in.bin", "cat.py").out == path.read_bytes()
    assert grid("run", "cat.py") == (0, b"", "")
    assert grid("run", "--stdin", "none", "cat.py", stdin=b"not read").out == b""
    assert grid("run", "--stdin", "-", "cat.py", stdin=b"asked for").out == b"asked for"


def test_a_program_that_ignores_its_stdin_ends_normally(grid: Grid) -> None:
    grid.write("hello.py", "print('hello')")
    assert grid("run", "hello.py", stdin=b"x" * 3_000_000) == (0, b"hello\n", "")


def test_the_program_can_be_read_from_stdin(grid: Grid) -> None:
    assert grid("run", "--lang", "python", "-", "x", stdin=ECHO.encode()).text == "x"


# --- output -----------------------------------------------------------------------------------------------------------


def test_binary_output_arrives_unchanged(grid: Grid) -> None:
    grid.write("bytes.py", "import os\nos.write(1, bytes(range(256)) * 40)\nos.write(2, bytes(range(255, -1, -1)))\n")
    done = subprocess.run(
        grid.argv("run", "bytes.py"), capture_output=True, cwd=grid.folder, env=grid.environ, check=True
    )
    assert done.stdout == bytes(range(256)) * 40
    assert done.stderr == bytes(range(255, -1, -1))


def test_a_line_of_one_megabyte_arrives_unchanged(grid: Grid) -> None:
    grid.write("line.py", "print('x' * 1_000_000, end='')")
    assert grid("run", "line.py").out == b"x" * 1_000_000


def test_a_program_without_output_prints_nothing(grid: Grid) -> None:
    grid.write("quiet.c", "int main(void) { return 0; }\n")
    assert grid("run", "quiet.c") == (0, b"", "")


def test_200_megabytes_of_output_arrive_unchanged(grid: Grid) -> None:
    grid.write(
        "much.py",
        """import hashlib, sys
digest = hashlib.sha256()
for number in range(200):
    piece = hashlib.sha256(str(number).encode()).digest() * 32768
    digest.update(piece)
    sys.stdout.buffer.write(piece)
sys.stderr.write(digest.hexdigest())
""",
    )
    digest, size = hashlib.sha256(), 0
    with subprocess.Popen(
        grid.argv("run", "much.py"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=grid.folder, env=grid.environ
    ) as client:
        assert client.stdout is not None
        assert client.stderr is not None
        while piece := client.stdout.read(1 << 20):
            digest.update(piece)
            size += len(piece)
        printed = client.stderr.read().decode()
    assert (client.returncode, size, printed) == (0, 200 * (1 << 20), digest.hexdigest())
    assert grid("rm", "last").code == 0


# --- long programs ----------------------------------------------------------------------------------------------------


def test_a_c_program_of_a_thousand_lines_runs(grid: Grid) -> None:
    functions = [f"static long f{n}(long x) {{ return (x * {n + 3} + {n}) % 1000003; }}" for n in range(1000)]
    calls = [f"    x = f{n}(x);" for n in range(1000)]
    grid.write(
        "long.c",
        "\n".join(["#include <stdio.h>", *functions, "int main(void) {", "    long x = 1;", *calls])
        + '\n    printf("%ld\\n", x);\n}\n',
    )
    expected = 1
    for n in range(1000):
        expected = (expected * (n + 3) + n) % 1000003
    assert grid("run", "long.c").text == f"{expected}\n"


def test_a_python_program_of_a_thousand_lines_runs(grid: Grid) -> None:
    lines = ["total = 0", *(f"total = (total * 31 + {n}) % 1000003" for n in range(1000)), "print(total)"]
    grid.write("long.py", "\n".join(lines))
    expected = 0
    for n in range(1000):
        expected = (expected * 31 + n) % 1000003
    assert grid("run", "long.py").text == f"{expected}\n"


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_makefile_is_built_and_run(grid: Grid) -> None:
    grid.write("project/Makefile", "prog: main.c lib/part.c\n\tgcc -o $@ $^\n")
    grid.write(
        "project/main.c",
        '#include <stdio.h>\nint part(void);\nint main(int n, char **w) { printf("%d %s", part(), w[1]); }\n',
    )
    grid.write("project/lib/part.c", "int part(void) { return 42; }\n")
    done = grid("run", "./project", "a b")
    assert (done.code, done.out) == (0, b"42 a b"), done


# --- other programs ---------------------------------------------------------------------------------------------------


def test_A38_text_is_utf8_in_every_language(grid: Grid) -> None:
    words = "grüße 你好 🎉"
    grid.write("u.py", f"import sys; print({words!r}, sys.argv[1])")
    main = 'public static void main(String[] a) { System.out.println("' + words + ' " + a[0]); }'
    grid.write("U.java", "class U { " + main + " }")
    grid.write("u.c", f'#include <stdio.h>\nint main(int n, char **w) {{ printf("{words} %s\\n", w[1]); }}\n')
    for name in ("u.py", "U.java", "u.c"):
        assert grid("run", name, words).text == f"{words} {words}\n", name


def test_c_and_cpp_programs_use_their_standard_libraries(grid: Grid) -> None:
    grid.write("m.c", '#include <math.h>\n#include <stdio.h>\nint main(int n, char **w) { printf("%.3f", sqrt(n)); }\n')
    grid.write(
        "v.cpp",
        "#include <bits/stdc++.h>\nint main() { std::vector v{3, 1, 2}; std::ranges::sort(v); std::cout << v[0]; }\n",
    )
    assert grid("run", "m.c", "x").out == b"1.414"
    assert grid("run", "--flags", "-std=c++20", "v.cpp").out == b"1"


def test_executable_scripts_and_binaries_run_without_a_toolchain(grid: Grid) -> None:
    grid.write("tool", "#!/bin/sh\nprintf '%s|' \"$@\"\nexit 5\n").chmod(0o755)
    assert grid("run", "./tool", "a b", "") == (5, b"a b||", "")
    source = grid.write("b.c", "#include <stdio.h>\nint main(int n, char **w) { puts(w[1]); return 6; }\n")
    subprocess.run(["gcc", "-o", str(grid.folder / "b"), str(source)], check=True)
    assert grid("run", "./b", "elf") == (6, b"elf\n", "")
    grid.write("s.sh", "#!/bin/bash\na=(1 2 3)\necho ${#a[@]} $1\n")
    assert grid("run", "s.sh", "x") == (0, b"3 x\n", "")


def test_environment_variables_arrive_unchanged(grid: Grid) -> None:
    grid.write("env.py", "import os\nfor n in 'ABCD': print(repr(os.environ[n]))\n")
    values = ["a b'c\"", "two\nlines", "", "grüße $(id)"]
    words = [word for name, value in zip("ABCD", values, strict=True) for word in ("--env", f"{name}={value}")]
    assert grid("run", *words, "env.py").text.splitlines() == [repr(value) for value in values]


def test_files_that_a_program_leaves_in_its_folder_are_removed(grid: Grid) -> None:
    grid.write(
        "litter.py",
        """import os
os.makedirs("deep/er"); open("deep/er/file", "w").write("x" * 100000)
os.symlink("/etc", "link"); os.mkfifo("pipe"); open("-rf", "w"); open("new\\nline", "w")
os.chmod("deep/er/file", 0); os.chmod("deep/er", 0); os.chmod("deep", 0o500)
print(sorted(os.listdir(".")))
""",
    )
    assert grid("run", "litter.py").code == 0  # the fixture checks the disk


def test_a_thousand_arguments_arrive(grid: Grid) -> None:
    grid.write("count.py", "import sys; print(len(sys.argv) - 1, sys.argv[-1])")
    assert grid("run", "count.py", *(f"argument {n}" for n in range(1000))).text == "1000 argument 999\n"


def test_an_empty_program_runs(grid: Grid) -> None:
    grid.write("empty.py", "")
    assert grid("run", "empty.py") == (0, b"", "")
    grid.write("empty.c", "")
    assert grid("run", "empty.c").code == 126


def test_output_arrives_while_the_program_runs_in_the_order_of_each_stream(grid: Grid) -> None:
    grid.write("both.py", "import sys\nfor n in range(500):\n    print('o', n)\n    print('e', n, file=sys.stderr)\n")
    done = grid("run", "both.py")
    assert done.out == b"".join(b"o %d\n" % n for n in range(500))
    assert done.err == "".join(f"e {n}\n" for n in range(500))


def test_twenty_concurrent_jobs_run_once_each(grid: Grid) -> None:
    grid.write("twice.py", "import sys; print(int(sys.argv[1]) * 2)")
    clients = [grid.start("run", "twice.py", str(n)) for n in range(20)]
    assert [client.result() for client in clients] == [(0, b"%d\n" % (2 * n), "") for n in range(20)]


@pytest.mark.parametrize(
    ("main", "files"),
    [
        ("main.c", {
            "main.c": '#include <stdio.h>\n#include <stdlib.h>\n#include "lib/square.h"\n'
            'int main(int n, char **a) { printf("%d\\n", square(atoi(a[1]))); return 0; }\n',
            "lib/square.h": "int square(int);\n",
            "lib/square.c": '#include "square.h"\nint square(int x) { return x * x; }\n',
        }),
        ("app/Main.java", {
            "app/Main.java": "package app;\nimport app.parts.Square;\npublic class Main { public static void main("
            "String[] a) { System.out.println(Square.of(Integer.parseInt(a[0]))); } }\n",
            "app/parts/Square.java": "package app.parts;\npublic class Square { public static int of(int x) "
            "{ return x * x; } }\n",
        }),
        ("main.py", {"main.py": "import sys, square\nprint(square.of(int(sys.argv[1])))\n",
                     "square.py": "def of(x): return x * x\n"}),
    ],
)  # fmt: skip
def test_a_program_of_several_files_is_compiled_together(grid: Grid, main: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        grid.write(f"project/{name}", text)
    assert grid("run", "--main", main, "project", "7") == (0, b"49\n", "")
    assert grid("sweep", "-k", "--main", main, "-p", "x=2..4", "project") == (0, b"4\n9\n16\n", "")
