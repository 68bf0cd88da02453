"""scripts/check_changelog.py in repositories of its own: what it accepts, what it reports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAGMENT = "changelog.d/+faster-start.added.md"
TEXT = "The master starts in half the time.\n"


class Answer(NamedTuple):
    """What the check returned."""

    code: int
    stdout: str
    stderr: str


class Repository:
    """A git repository with the script, the configuration and one commit on main."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("scripts/check_changelog.py", "pyproject.toml", "CHANGELOG.md", "changelog.d/README.md"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self._environ |= {"HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
        self._environ.pop("CHANGELOG_BASE", None)
        self._environ.pop("CI", None)
        self.git("init", "--quiet", "--initial-branch=main")
        self.write("sshgrid/master.py", "first = 1\n")
        self.commit()

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        done = subprocess.run(
            ["git", *who, *words], cwd=self.folder, env=self._environ, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=area: change")

    def check(self, **environ: str) -> Answer:
        done = subprocess.run(
            [sys.executable, "scripts/check_changelog.py"],
            cwd=self.folder,
            env=self._environ | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path.resolve())


def test_a_branch_that_changes_the_package_with_a_fragment_passes(repository: Repository) -> None:
    repository.git("checkout", "--quiet", "-b", "topic")
    repository.write("sshgrid/master.py", "second = 2\n")
    repository.write(FRAGMENT, TEXT)
    repository.commit()
    assert repository.check() == (0, "changelog: 1 fragments are valid\n", "")


def test_a_branch_that_changes_the_package_without_a_fragment_fails(repository: Repository) -> None:
    repository.git("checkout", "--quiet", "-b", "topic")
    repository.write("sshgrid/master.py", "second = 2\n")
    repository.commit()
    answer = repository.check()
    assert answer.code == 1
    assert answer.stderr.startswith("error: sshgrid/ changed since ")
    assert "No new newsfragments found" in answer.stderr


def test_a_fragment_that_main_already_has_does_not_count_for_a_branch(repository: Repository) -> None:
    repository.write(FRAGMENT, TEXT)
    repository.commit()
    repository.git("checkout", "--quiet", "-b", "topic")
    repository.write("sshgrid/master.py", "second = 2\n")
    repository.commit()
    assert repository.check().code == 1


def test_a_branch_that_changes_only_tests_needs_no_fragment(repository: Repository) -> None:
    repository.git("checkout", "--quiet", "-b", "topic")
    repository.write("tests/test_x.py", "x = 1\n")
    repository.commit()
    assert repository.check().code == 0


def test_a_change_on_main_since_the_last_release_needs_a_waiting_fragment(repository: Repository) -> None:
    repository.write("sshgrid/master.py", "second = 2\n")
    repository.commit()
    assert "changed since CHANGELOG.md was last written" in repository.check().stderr
    repository.write(FRAGMENT, TEXT)
    repository.commit()
    assert repository.check().code == 0


def test_a_release_that_empties_the_folder_passes(repository: Repository) -> None:
    repository.write("sshgrid/master.py", "second = 2\n")
    repository.write(FRAGMENT, TEXT)
    repository.commit()
    (repository.folder / FRAGMENT).unlink()
    changelog = (repository.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    repository.write("CHANGELOG.md", changelog + f"- {TEXT}")
    repository.commit()
    assert repository.check().code == 0


def test_the_base_of_the_comparison_can_be_given(repository: Repository) -> None:
    base = repository.git("rev-parse", "HEAD")
    repository.write(FRAGMENT, TEXT)
    repository.commit()
    middle = repository.git("rev-parse", "HEAD")
    repository.write("sshgrid/master.py", "second = 2\n")
    repository.commit()
    assert repository.check(CHANGELOG_BASE=base).code == 0
    assert repository.check(CHANGELOG_BASE=middle).code == 1
    assert "CHANGELOG_BASE=no-such-commit: not a commit" in repository.check(CHANGELOG_BASE="no-such-commit").stderr


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("faster.added.md", TEXT, "expected a name like"),
        ("+Faster.added.md", TEXT, "expected a name like"),
        ("+faster.added.txt", TEXT, "expected a name like"),
        ("+faster.feature.md", TEXT, "unknown type 'feature'"),
        ("+faster.added.md", " \n", "empty"),
        ("+faster.added.md", "- A bullet.\n", "starts with a bullet"),
    ],
)
def test_a_wrong_fragment_is_reported(repository: Repository, name: str, text: str, problem: str) -> None:
    repository.write(f"changelog.d/{name}", text)
    repository.commit()
    answer = repository.check()
    assert answer.code == 1
    assert answer.stderr.startswith(f"error: changelog.d/{name}: {problem}")
    assert answer.stderr.endswith("hint: CONTRIBUTING.md, section 'Changelog fragments'\n")


@pytest.mark.parametrize("name", ["12.added.md", "12.added.1.md", "+faster.fixed.md", "+a-b.internal.2.md"])
def test_a_right_name_passes(repository: Repository, name: str) -> None:
    repository.write(f"changelog.d/{name}", TEXT)
    repository.commit()
    assert repository.check() == (0, "changelog: 1 fragments are valid\n", "")


def test_a_changelog_without_the_start_marker_is_reported(repository: Repository) -> None:
    repository.write("CHANGELOG.md", "# Changelog\n")
    repository.commit()
    assert "expected the line '<!-- towncrier release notes start -->' once, found it 0" in repository.check().stderr


def test_ci_needs_a_git_checkout(repository: Repository) -> None:
    shutil.rmtree(repository.folder / ".git")
    assert repository.check(CI="").code == 0
    assert "not a git checkout" in repository.check(CI="true").stderr


def test_a_fragment_that_is_not_rendered_is_reported(repository: Repository) -> None:
    repository.write("changelog.d/12.added.md", TEXT)
    text = (repository.folder / "pyproject.toml").read_text(encoding="utf-8")
    hidden = text.replace('name = "Added"\nshowcontent = true', 'name = "Added"\nshowcontent = false')
    assert hidden != text
    repository.write("pyproject.toml", hidden)
    repository.commit()
    assert "its text is not in the output of 'towncrier build --draft'" in repository.check().stderr
