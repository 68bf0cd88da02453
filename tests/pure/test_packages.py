"""scripts/check_packages.py: what counts as a complete distribution, and which Pythons it looks for."""

from __future__ import annotations

import importlib.util
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_packages", ROOT / "scripts" / "check_packages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


packages = _script()
README = (
    '[Install](docs/install.md#nodes) [site](https://example.org/a.md) ![tour](docs/tour.svg)\n<img src="logo.svg">'
)
TRACKED = ["sshgrid/cli/run.py", "sshgrid/remote/node.sh", "tests/pure/test_new.py", ".gitignore"]
METADATA = "License-Expression: MIT\nRequires-Python: >=3.11\nProject-URL: Source, https://example.org\n"


def names_for(patterns: tuple[str, ...]) -> list[str]:
    """One name for each pattern."""
    return [pattern.replace("*", "x") for pattern in patterns]


def sdist_names() -> list[str]:
    return [*names_for(packages.SDIST), "docs/install.md", "docs/tour.svg", "logo.svg", *TRACKED[:3]]


def wheel_names() -> list[str]:
    return [*names_for(packages.WHEEL), *TRACKED[:2]]


def test_complete_distributions_pass() -> None:
    packages.check_sdist(sdist_names(), TRACKED, README)
    packages.check_wheel(wheel_names(), TRACKED, METADATA)


@pytest.mark.parametrize("pattern", [*packages.SDIST, *packages.linked_files(README), *TRACKED[:3]])
def test_a_source_distribution_without_an_expected_file_is_refused(pattern: str) -> None:
    names = [name for name in sdist_names() if not fnmatchcase(name, pattern)]
    with pytest.raises(packages.Wrong, match="the source distribution lacks"):
        packages.check_sdist(names, TRACKED, README)


@pytest.mark.parametrize("pattern", [*packages.WHEEL, *TRACKED[:2]])
def test_a_wheel_without_an_expected_file_is_refused(pattern: str) -> None:
    names = [name for name in wheel_names() if not fnmatchcase(name, pattern)]
    with pytest.raises(packages.Wrong, match="the wheel lacks"):
        packages.check_wheel(names, TRACKED, METADATA)


@pytest.mark.parametrize("name", ["tests/conftest.py", "build/lib/sshgrid/run.py", "sshgrid-1.data/data/etc/x"])
def test_a_wheel_with_a_file_outside_of_the_package_is_refused(name: str) -> None:
    with pytest.raises(packages.Wrong, match="must not contain"):
        packages.check_wheel([*wheel_names(), name], TRACKED, METADATA)


def test_a_wheel_contains_the_man_pages_of_the_repository() -> None:
    tracked = [*TRACKED, "docs/man/sshgrid-run.1"]
    page = "sshgrid-0.1.0.data/data/share/man/man1/sshgrid-run.1"
    packages.check_wheel([*wheel_names(), page], tracked, METADATA)
    with pytest.raises(packages.Wrong, match=r"the wheel lacks: .*/man1/sshgrid-run\.1"):
        packages.check_wheel(wheel_names(), tracked, METADATA)


def test_a_wheel_without_a_licence_in_its_metadata_is_refused() -> None:
    with pytest.raises(packages.Wrong, match="metadata of the wheel lack: License-Expression: MIT"):
        packages.check_wheel(wheel_names(), TRACKED, METADATA.replace("MIT", "BSD-3-Clause"))


def test_links_and_pictures_of_a_page_are_found() -> None:
    assert packages.linked_files(README) == ["docs/install.md", "docs/tour.svg", "logo.svg"]


def test_a_file_that_the_readme_links_to_is_wanted_in_the_source_distribution() -> None:
    assert "docs/install.md" in packages.linked_files((ROOT / "README.md").read_text(encoding="utf-8"))
    with pytest.raises(packages.Wrong, match=r"lacks: docs/other\.md$"):
        packages.check_sdist(sdist_names(), TRACKED, README + "[Other](docs/other.md)")


def test_the_supported_versions_are_those_of_the_classifiers() -> None:
    classifiers = ["Programming Language :: Python :: 3", "Typing :: Typed"]
    classifiers += [f"Programming Language :: Python :: 3.{minor}" for minor in (13, 9, 11)]
    assert packages.supported(classifiers) == ["3.9", "3.11", "3.13"]


def test_a_python_that_does_not_run_or_has_another_version_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in (
        ("python3.11", "echo 3.11"),
        ("python3.12", "echo 'python3.12: command not found'; exit 127"),
        ("python3.13", "echo 3.14"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(packages.sys, "executable", str(tmp_path / "python3.13"))
    (tmp_path / "python3").symlink_to("python3.13")
    assert packages.find_pythons(["3.11", "3.12", "3.13"]) == {"3.11": str(tmp_path / "python3.11")}


def test_a_python_of_pyenv_is_found_when_its_shim_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = tmp_path / "versions"
    for release in ("3.12.1", "3.12.10"):
        (prefix / release / "bin").mkdir(parents=True)
        (prefix / release / "bin/python").write_text("#!/bin/sh\necho 3.12\n")
        (prefix / release / "bin/python").chmod(0o755)
    pyenv = f'case $1 in versions) printf "3.12.1\\n3.12.10\\n3.9.2\\n" ;; prefix) echo {prefix}/$2 ;; esac'
    for name, script in (("pyenv", pyenv), ("python3.12", "exit 127"), ("python3", "exit 127")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(packages.sys, "executable", str(tmp_path / "python3"))
    assert packages.find_pythons(["3.12"]) == {"3.12": str(prefix / "3.12.10/bin/python")}


def test_a_machine_without_a_supported_python_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_pythons", lambda versions: {})
    with pytest.raises(packages.Wrong, match=r"no Python of 3\.11, 3\.12, 3\.13: nothing was checked"):
        packages.check(tmp_path)


def test_a_command_with_another_exit_code_is_an_error() -> None:
    with pytest.raises(packages.Wrong, match="exit code 3, expected 0"):
        packages.run("sh", "-c", "exit 3")
    assert packages.run("sh", "-c", "echo x; exit 3", code=3) == "x\n"
