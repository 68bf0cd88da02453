"""Check the changelog fragments in changelog.d/: names, types, text, and that a change to sshgrid/ comes with one.

Exit code 0 on success, 1 with one `error:` line for each problem. `CHANGELOG_BASE` names the commit to compare with.

The base of the comparison is, in this order: `CHANGELOG_BASE`; the point where this branch left `origin/main` or
`main`; on main itself, the last commit that changed CHANGELOG.md. A branch must add a fragment (`towncrier check`). On
main there must be at least one fragment for the next release.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "changelog.d"
README = "README.md"
# The number of an issue, or + and a word for a change without one; then the type; then a counter if there are several.
NAME = r"(?:\d+|\+[a-z0-9]+(?:-[a-z0-9]+)*)\.(?P<type>[a-z]+)(?:\.\d+)?\.md"
TRUNKS = ("origin/main", "main")
COMMAND_SECONDS = 60.0


def configuration() -> dict[str, object]:
    """Return the table [tool.towncrier] of pyproject.toml."""
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["towncrier"]
    return table


def types() -> tuple[str, ...]:
    """Return the types of fragments that pyproject.toml declares."""
    declared = configuration()["type"]
    assert isinstance(declared, list)
    return tuple(kind["directory"] for kind in declared)


def fragments() -> list[Path]:
    """Return the files in changelog.d/ except the README."""
    return sorted(path for path in FOLDER.iterdir() if path.name != README)


def problems_of(path: Path, known_types: tuple[str, ...]) -> list[str]:
    """Return what is wrong with one fragment, one message per problem."""
    place = f"changelog.d/{path.name}"
    found = re.fullmatch(NAME, path.name)
    if found is None:
        return [f"{place}: expected a name like 12.added.md or +short-name.fixed.md"]
    problems = []
    if found["type"] not in known_types:
        problems.append(f"{place}: unknown type '{found['type']}'; expected one of {', '.join(known_types)}")
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        problems.append(f"{place}: empty; expected a sentence that says what changes for users")
    if re.match(r"\s*([-*#]|\d+\.) ", text):
        problems.append(f"{place}: starts with a bullet or a heading; towncrier adds the bullet")
    return problems


def flat(text: str) -> str:
    """Return the text with each run of white space replaced by one space."""
    return " ".join(text.split())


def rendered() -> tuple[str, str]:
    """Render the next section of CHANGELOG.md. Return it and an error message, one of which is empty."""
    done = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "0.0.0", "--date", "2000-01-01"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    return (done.stdout, "") if done.returncode == 0 else ("", f"towncrier build: {done.stderr.strip()}")


def rendering_problems(paths: list[Path]) -> list[str]:
    """Return an error per fragment whose text is not in the rendered section."""
    draft, problem = rendered()
    if problem:
        return [problem]
    section = flat(draft)
    return [
        f"changelog.d/{path.name}: its text is not in the output of 'towncrier build --draft'"
        for path in paths
        if flat(path.read_text(encoding="utf-8")) not in section
    ]


def start_problems() -> list[str]:
    """Return an error if CHANGELOG.md has no single place where towncrier inserts the next section."""
    start = str(configuration()["start_string"]).strip()
    count = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").count(start)
    return [] if count == 1 else [f"CHANGELOG.md: expected the line '{start}' once, found it {count} times"]


# --- the comparison with git ------------------------------------------------------------------------------------------


def git(*words: str) -> str | None:
    """Return the output of a git command without its last newline, or None if the command fails."""
    done = subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
    )
    return done.stdout.strip() if done.returncode == 0 else None


def branch_point() -> str | None:
    """Return the commit where HEAD left the trunk, or None if HEAD is part of the trunk."""
    head = git("rev-parse", "HEAD")
    for trunk in TRUNKS:
        base = git("merge-base", "HEAD", trunk)
        if base is not None and base != head:
            return base
    return None


def package_changed_since(base: str) -> bool:
    """Return whether a commit after `base` changed a file below sshgrid/."""
    return bool(git("diff", "--name-only", f"{base}...HEAD", "--", "sshgrid"))


def branch_problems(base: str) -> list[str]:
    """Return an error if the branch since `base` changes sshgrid/ and adds no fragment."""
    if not package_changed_since(base):
        return []
    done = subprocess.run(
        [sys.executable, "-m", "towncrier", "check", "--compare-with", base],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    if done.returncode == 0:
        return []
    printed = (done.stdout + done.stderr).strip()
    return [
        f"sshgrid/ changed since {base[:12]} and changelog.d/ has no new fragment; towncrier check says:\n{printed}"
    ]


def trunk_problems(paths: list[Path]) -> list[str]:
    """Return an error if sshgrid/ changed since CHANGELOG.md was last written and there is no fragment."""
    release = git("log", "-1", "--format=%H", "--", "CHANGELOG.md")
    if not release:
        return ["CHANGELOG.md: not in any commit"]
    if paths or not package_changed_since(release):
        return []
    return [f"sshgrid/ changed since CHANGELOG.md was last written ({release[:12]}) and changelog.d/ has no fragment"]


def comparison_problems(paths: list[Path]) -> list[str]:
    """Return the errors of the comparison with the base that applies here."""
    if git("rev-parse", "--show-toplevel") != str(ROOT):
        return ["not a git checkout: cannot compare"] if os.environ.get("CI") == "true" else []
    if wanted := os.environ.get("CHANGELOG_BASE"):
        base = git("rev-parse", "--verify", f"{wanted}^{{commit}}")
        return branch_problems(base) if base else [f"CHANGELOG_BASE={wanted}: not a commit"]
    base = branch_point()
    return branch_problems(base) if base else trunk_problems(paths)


def main() -> int:
    """Run every check, print the errors to stderr, return the exit code."""
    paths = fragments()
    known_types = types()
    problems = [problem for path in paths for problem in problems_of(path, known_types)]
    problems += start_problems()
    if not problems:
        problems = rendering_problems(paths) + comparison_problems(paths)
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")
    if problems:
        sys.stderr.write("hint: CONTRIBUTING.md, section 'Changelog fragments'\n")
        return 1
    sys.stdout.write(f"changelog: {len(paths)} fragments are valid\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
