"""Build the source distribution and the wheel, check what they contain, install them, run a program with each.

Uses each Python of the classifiers in pyproject.toml that is on this machine: `python3.X` on PATH, or from pyenv.
Exit code 0 on success, 1 with an error message at the first problem, also if no such Python was found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND_SECONDS = 300.0
AT_ONCE = 2

# Patterns of paths (`*` also matches `/`); each must match a file of the distribution.
SDIST = (
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "MANIFEST.in", "Makefile"),
    *("pyproject.toml", "inventory.yaml", "PKG-INFO", ".ci/run", "changelog.d/README.md"),
    *("examples/primes.py", "examples/primes.c", "examples/Primes.cpp", "examples/Primes.java"),
    *("docs/index.md", "docs/adr/index.md", "docs/conf.py", "docs/_ext/sshgrid_docs.py"),
    *("tests/conftest.py", "tests/pure/*test_*.py", "tests/edge/*test_*.py", "tests/service/*test_*.py"),
    *("tests/whole/*test_*.py", "tests/lab/boot.sh", "bench/__main__.py"),
    *("scripts/venv.sh", "scripts/demo.sh", "scripts/setup-test-host.sh", "scripts/check_packages.py"),
    *("sshgrid/__init__.py", "sshgrid/py.typed", "sshgrid/*schema.sql", "sshgrid/remote/*.sh"),
)
WHEEL = (
    *("sshgrid/__init__.py", "sshgrid/cli/__init__.py", "sshgrid/py.typed", "sshgrid/*schema.sql"),
    *("sshgrid/remote/*.sh", "sshgrid-*.dist-info/METADATA", "sshgrid-*.dist-info/entry_points.txt"),
    "sshgrid-*.dist-info/licenses/LICENSE",
)
MAN_PAGES = "sshgrid-*.data/data/share/man/man1"
# A wheel installs nothing else.
WHEEL_ONLY = ("sshgrid/*", "sshgrid-*.dist-info/*", f"{MAN_PAGES}/*")
METADATA = ("License-Expression: MIT", "Requires-Python: >=3.11", "Project-URL: Source, ")
# Files of the repository that a source distribution does not need.
NOT_IN_SDIST = (".gitignore",)

INVENTORY = "version: 1\nnodes:\n  here: {{connection: local, workdir: {workdir}}}\n"
PROGRAM = 'import sys\n\nprint("hello", *sys.argv[1:])\nsys.exit(3)\n'


class Wrong(Exception):
    """A package has an error, which the message describes."""


# --- what a distribution contains -------------------------------------------------------------------------------------


def missing(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the patterns that match none of the names, each once."""
    known = list(names)
    return [pattern for pattern in dict.fromkeys(patterns) if not any(fnmatchcase(name, pattern) for name in known)]


def unexpected(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that match none of the patterns."""
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def linked_files(page: str) -> list[str]:
    """Return the files of the repository that a Markdown page links to or shows."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page) + re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    files = (target.partition("#")[0] for target in targets if "://" not in target)
    return sorted({file for file in files if file})


def check_sdist(names: Sequence[str], tracked: Sequence[str], readme: str) -> None:
    """Raise Wrong if the source distribution lacks an expected, a linked or a tracked file."""
    wanted = [*SDIST, *linked_files(readme), *(name for name in tracked if name not in NOT_IN_SDIST)]
    if lacking := missing(names, wanted):
        raise Wrong(f"the source distribution lacks: {', '.join(lacking)}")


def check_wheel(names: Sequence[str], tracked: Sequence[str], metadata: str) -> None:
    """Raise Wrong if the wheel lacks a file of the package or has one of another, or if its metadata lack a field."""
    package = [name for name in tracked if name.startswith("sshgrid/")]
    pages = [f"{MAN_PAGES}/{Path(name).name}" for name in tracked if fnmatchcase(name, "docs/man/*.1")]
    if lacking := missing(names, [*WHEEL, *package, *pages]):
        raise Wrong(f"the wheel lacks: {', '.join(lacking)}")
    if others := unexpected(names, WHEEL_ONLY):
        raise Wrong(f"the wheel must not contain: {', '.join(others)}")
    if lacking := [line for line in METADATA if line not in metadata]:
        raise Wrong(f"the metadata of the wheel lack: {', '.join(lacking)}")


def files_of_sdist(path: Path) -> list[str]:
    """Return the files of a source distribution, without its top folder."""
    with tarfile.open(path) as archive:
        return [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]


def files_of_wheel(path: Path) -> list[str]:
    """Return the files of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def metadata_of(path: Path) -> str:
    """Return the text of METADATA of a wheel."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


# --- commands ---------------------------------------------------------------------------------------------------------


def run(*words: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, code: int = 0) -> str:
    """Run a command, return its stdout. Raise Wrong if it ends with another exit code than `code`."""
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=COMMAND_SECONDS,
    )
    if done.returncode != code:
        command = " ".join(str(word) for word in words)
        raise Wrong(f"{command}: exit code {done.returncode}, expected {code}\n{done.stdout}{done.stderr}")
    return done.stdout


def print_line(text: str) -> None:
    """Print one line of progress."""
    sys.stdout.write(f"check-packages: {text}\n")
    sys.stdout.flush()


def stdout_of(*words: str) -> str:
    """Return the stdout of a command, `""` if it is missing or fails."""
    if shutil.which(words[0]) is None:
        return ""
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    return done.stdout.strip() if done.returncode == 0 else ""


# --- Pythons ----------------------------------------------------------------------------------------------------------


def supported(classifiers: Iterable[str]) -> list[str]:
    """Return the versions ("3.11") that the classifiers name, oldest first."""
    found = (re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", text) for text in classifiers)
    return [f"3.{minor}" for minor in sorted(int(match[1]) for match in found if match)]


def candidates(version: str) -> list[str]:
    """Return paths that can be a Python of this version, best first."""
    paths = [path for path in (shutil.which(f"python{version}"), sys.executable, shutil.which("python3")) if path]
    releases = [name for name in stdout_of("pyenv", "versions", "--bare").split() if name.startswith(f"{version}.")]
    releases.sort(key=lambda name: [int(part) for part in re.findall(r"\d+", name)], reverse=True)
    prefixes = (stdout_of("pyenv", "prefix", name) for name in releases)
    return paths + [f"{prefix}/bin/python" for prefix in prefixes if prefix]


def find_pythons(versions: Iterable[str]) -> dict[str, str]:
    """Return the path of a working Python with venv for each of these versions that is on this machine."""
    probe = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    found = {}
    for version in versions:
        for path in candidates(version):
            if stdout_of(path, "-c", probe) == version:
                found[version] = path
                break
    return found


# --- build and install ------------------------------------------------------------------------------------------------


def tracked_files() -> list[str]:
    """Return the tracked files of the repository and the new ones that are not ignored."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


def copy_of_sources(folder: Path, names: Iterable[str]) -> Path:
    """Copy the files into `folder`, so that the build neither finds nor leaves files of a build."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return folder


def environment(python: str, folder: Path, requirements: Sequence[str]) -> Path:
    """Make a virtual environment with these packages, return its bin folder."""
    run(python, "-m", "venv", folder)
    run(folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return folder / "bin"


def only(folder: Path, pattern: str) -> Path:
    """Return the one file that matches. Raise Wrong if not exactly one matches."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise Wrong(f"expected one {pattern}, found: {[path.name for path in found]}")
    return found[0]


def unpacked(sdist: Path, folder: Path) -> Path:
    """Unpack the source distribution into `folder`, return its top folder."""
    folder.mkdir()
    run("tar", "-xzf", sdist, "-C", folder)
    return folder / sdist.name.removesuffix(".tar.gz")


class Workshop:
    """Builds and installs the packages in one temporary folder."""

    def __init__(self, folder: Path, pythons: dict[str, str], project: dict[str, dict[str, list[str]]]) -> None:
        self.folder = folder
        self.pythons = pythons
        self._groups = project["dependency-groups"]
        self._first = next(iter(pythons.values()))
        self._tools = Path()

    def build(self, tracked: Sequence[str]) -> tuple[Path, Path]:
        """Build the source distribution from a copy of the tree and the wheel from the source distribution."""
        self._tools = environment(self._first, self.folder / "tools", self._groups["package"])
        source = copy_of_sources(self.folder / "source", tracked)
        run(self._tools / "python", "-m", "build", "--outdir", self.folder / "dist", source)
        return only(self.folder / "dist", "*.tar.gz"), only(self.folder / "dist", "*.whl")

    def try_pip(self, version: str, package: Path) -> None:
        """Install the package with pip into a fresh environment of this Python and run a program."""
        place = self.folder / f"pip-{version}-{package.parent.name}-{package.suffix.strip('.')}"
        run(self.pythons[version], "-m", "venv", "--without-pip", place)
        pip = (self._tools / "pip", "--python", place / "bin/python", "install", "--quiet", "--no-compile")
        run(*pip, package)
        self._try(place / "bin/sshgrid", place)

    def try_pipx(self, version: str, package: Path) -> None:
        """Install the unpacked folder with pipx and run a program."""
        pipx = environment(self.pythons[version], self.folder / "pipx", self._groups["pipx"]) / "pipx"
        place = self.folder / "pipx-home"
        names = ("PIPX_HOME", "PIPX_BIN_DIR", "PIPX_MAN_DIR")
        own = {name: str(place / name.lower()) for name in names}
        run(pipx, "install", "--python", self.pythons[version], ".", env=clean_environment() | own, cwd=package)
        self._try(place / "pipx_bin_dir/sshgrid", place)

    def _try(self, command: Path, place: Path) -> None:
        inventory, program = place / "inventory.yaml", place / "hello.py"
        inventory.write_text(INVENTORY.format(workdir=place / "work"), encoding="utf-8")
        program.write_text(PROGRAM, encoding="utf-8")
        env = clean_environment() | {"SSHGRID_HOME": str(place / "home")}
        version = run(command, "--version", env=env, cwd=place)
        if not re.search(r"\b\d+\.\d+\.\d+", version):
            raise Wrong(f"{command} --version: expected a version, got {version!r}")
        try:
            printed = run(command, "-i", inventory, "run", program, "from", "here", env=env, cwd=place, code=3)
        finally:
            run(command, "-i", inventory, "master", "stop", env=env, cwd=place)
        if printed != "hello from here\n":
            raise Wrong(f"{command} run: expected 'hello from here', got {printed!r}")


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that select another installation or inventory."""
    prefixes = ("SSHGRID", "XDG_", "PYTHON", "PIPX_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def check(folder: Path) -> None:
    """Build, check and install the packages in `folder`. Raise Wrong at the first problem."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    versions = supported(project["project"]["classifiers"])
    pythons = find_pythons(versions)
    if not pythons:
        raise Wrong(f"this machine has no Python of {', '.join(versions)}: nothing was checked")
    absent = [version for version in versions if version not in pythons]
    print_line(f"Python {', '.join(pythons)}" + (f"; not on this machine: {', '.join(absent)}" if absent else ""))

    workshop = Workshop(folder, pythons, project)
    tracked = tracked_files()
    sdist, wheel = workshop.build(tracked)
    check_sdist(files_of_sdist(sdist), tracked, (ROOT / "README.md").read_text(encoding="utf-8"))
    check_wheel(files_of_wheel(wheel), tracked, metadata_of(wheel))
    print_line(f"{sdist.name} and {wheel.name} are complete")

    oldest, newest = min(pythons, key=versions.index), max(pythons, key=versions.index)
    tree = unpacked(sdist, folder / "unpacked")
    trials: list[tuple[str, Callable[[str, Path], None], str, Path]] = [
        ("pipx install .", workshop.try_pipx, newest, tree),
        *(("pip install of the wheel", workshop.try_pip, version, wheel) for version in pythons),
        ("pip install of the source distribution", workshop.try_pip, oldest, sdist),
        ("pip install .", workshop.try_pip, oldest, unpacked(sdist, folder / "unpacked-pip")),
    ]
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        running = {pool.submit(trial, version, package): (name, version) for name, trial, version, package in trials}
        for future in as_completed(running):
            name, version = running[future]
            future.result()
            print_line(f"Python {version}: {name}, run of a program: as expected")


def main() -> int:
    """Run the check in a temporary folder, return the exit code."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sshgrid-packages-") as folder:
        try:
            check(Path(folder))
        except Wrong as problem:
            sys.stderr.write(f"error: {problem}\n")
            return 1
    print_line(f"all packages are correct ({time.monotonic() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
