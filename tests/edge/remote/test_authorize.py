"""The script that adds a key: once, with the modes that sshd requires, and no other line changed; in every shell."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from tests.edge.shells import SHELLS, bare_shell, missing_shell

SCRIPT = (resources.files("sshgrid") / "remote" / "authorize.sh").read_bytes()
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG ann@desk $(touch /tmp/never)"

Authorize = Callable[[], list[str]]


@pytest.fixture(params=SHELLS)
def authorize(request: pytest.FixtureRequest, tmp_path: Path) -> Authorize:
    """Add KEY to the account whose home is `tmp_path`. Return the script's answer."""
    if why := missing_shell(request.param):
        pytest.skip(why)
    shell, path = bare_shell(tmp_path.with_name(f"{tmp_path.name}-tools"), request.param)
    tmp_path.chmod(0o755)

    def call() -> list[str]:
        script = f"set -- {shlex.quote(KEY)}\n".encode() + SCRIPT
        environ = {"HOME": str(tmp_path), "PATH": path}
        done = subprocess.run([shell], input=script, capture_output=True, env=environ, timeout=20, check=True)
        assert done.stderr == b""
        return done.stdout.decode().splitlines()

    return call


def modes(home: Path) -> tuple[int, int]:
    folder = home / ".ssh"
    return folder.stat().st_mode & 0o7777, (folder / "authorized_keys").stat().st_mode & 0o7777


def test_the_first_key_creates_the_folder_and_the_file(authorize: Authorize, tmp_path: Path) -> None:
    assert authorize() == ["added"]
    assert (tmp_path / ".ssh/authorized_keys").read_text() == f"{KEY}\n"
    assert modes(tmp_path) == (0o700, 0o600)
    assert authorize() == ["there"]
    assert (tmp_path / ".ssh/authorized_keys").read_text() == f"{KEY}\n"


def test_other_lines_stay_and_a_last_line_without_a_line_break_gets_one(authorize: Authorize, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir(mode=0o777)
    file = tmp_path / ".ssh/authorized_keys"
    file.write_bytes(b"# " + KEY.encode() + b"\r\nssh-rsa B\\n \xff")
    assert authorize() == ["added"]
    assert file.read_bytes() == b"# " + KEY.encode() + b"\r\nssh-rsa B\\n \xff\n" + KEY.encode() + b"\n"
    assert modes(tmp_path) == (0o700, 0o600)


def test_a_key_with_options_or_another_comment_is_found(authorize: Authorize, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    kind, blob, _ = KEY.split(" ", 2)
    (tmp_path / ".ssh/authorized_keys").write_text(f'no-pty {kind} {blob} another name"')
    assert authorize() == ["there"]


def test_a_home_folder_that_others_can_write_is_reported(authorize: Authorize, tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    assert authorize() == ["added", f"loose {tmp_path}"]


def test_a_folder_that_cannot_be_made_is_reported(authorize: Authorize, tmp_path: Path) -> None:
    (tmp_path / ".ssh").write_text("a file in its place")
    assert authorize() == [f"unfit cannot write in {tmp_path}/.ssh"]
