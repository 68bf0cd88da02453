"""The pages and settings for contributors: pre-commit runs the linters of CI, CONTRIBUTING.md names what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "changelog.d/README.md")


def lint_commands() -> set[str]:
    """The commands of `make lint`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    return {line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()}


def hooks() -> list[dict[str, Any]]:
    """The hooks of pre-commit."""
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in settings["repos"]] == ["local"], "a hook would be downloaded"
    found: list[dict[str, Any]] = settings["repos"][0]["hooks"]
    return found


def linter(command: str) -> str:
    """The command without what says on which files and whether files are changed."""
    inner = re.fullmatch(r"sh -c '(.*)'", command)
    return (inner[1] if inner else command).removesuffix(" .").removesuffix(" --check")


def test_pre_commit_runs_the_linters_of_make_lint() -> None:
    assert {linter(hook["entry"]) for hook in hooks()} == {linter(command) for command in lint_commands()}


def test_a_hook_needs_no_download() -> None:
    assert {hook["language"] for hook in hooks()} == {"system"}


def test_the_tools_of_pre_commit_are_installed_by_the_test_extra() -> None:
    extra = {re.split(r"[<>=]", name)[0] for name in PROJECT["project"]["optional-dependencies"]["test"]}
    assert {"mypy", "ruff", "towncrier"} <= extra


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_for_contributors_names_exist(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`((?:sshgrid|tests|docs|scripts|changelog\.d)/[^`]*)`", text)
    linked = [target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in target]
    assert [name for name in named if not list(ROOT.glob(name))] == []
    assert [name for name in linked if not (ROOT / page).parent.joinpath(name).exists()] == []


def test_the_types_of_fragments_are_documented() -> None:
    types = [kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"]]
    for page in ("CONTRIBUTING.md", "changelog.d/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [name for name in types if f"`{name}`" not in text] == []


def test_the_metadata_say_licence_and_supported_versions() -> None:
    project = PROJECT["project"]
    assert project["license"] == "MIT"
    assert project["license-files"] == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    minors = [int(found) for found in re.findall(r"Python :: 3\.(\d+)", "\n".join(project["classifiers"]))]
    assert minors == list(range(11, 14))
    assert project["requires-python"] == f">=3.{minors[0]}"
