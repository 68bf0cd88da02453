"""Each mode of the faulty SSH server, checked with the OpenSSH client and with plain sockets."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.lab.faulty_server import FaultyServer, Mode

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="needs the OpenSSH client")


def ssh(
    server: FaultyServer, *words: str, program: str = "ssh", stdin: str = "", seconds: float = 20
) -> tuple[int, str, str]:
    options = [
        *("-F", "/dev/null", "-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
        *("-i", str(server.identity_file), "-o", f"Port={server.port}", "-o", f"User={server.user}"),
    ]
    done = subprocess.run(
        [program, *options, server.host, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@needs_ssh
def test_the_correct_mode_runs_a_command_with_its_stdin(tmp_path: Path) -> None:
    with FaultyServer(Mode.CORRECT, tmp_path) as server:
        assert ssh(server, "cat; echo error >&2; exit 7", stdin="word\n") == (7, "word\n", "error\n")
        assert server.commands == [b"cat; echo error >&2; exit 7"]


@needs_ssh
def test_the_correct_mode_sends_300_kB_on_each_stream(tmp_path: Path) -> None:
    with FaultyServer(Mode.CORRECT, tmp_path) as server:
        code, out, error = ssh(server, "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero")
        assert (code, len(out), len(error)) == (0, 300_000, 300_000)


@needs_ssh
def test_a_dropped_connection_has_no_exit_status(tmp_path: Path) -> None:
    with FaultyServer(Mode.DROPS, tmp_path) as server:
        code, out, _ = ssh(server, "true")
        assert (code, out) == (255, "partial")


@needs_ssh
def test_A16_the_server_reports_status_0_and_runs_nothing(tmp_path: Path) -> None:
    with FaultyServer(Mode.REPORTS_ZERO, tmp_path) as server:
        assert ssh(server, f"touch {tmp_path}/ran") == (0, "", "")
    assert not (tmp_path / "ran").exists()


@needs_ssh
def test_the_server_answers_nothing_after_the_login(tmp_path: Path) -> None:
    with FaultyServer(Mode.SILENT_AFTER_LOGIN, tmp_path) as server:
        with pytest.raises(subprocess.TimeoutExpired):
            ssh(server, "true", seconds=2)
        assert server.sessions == 1


@needs_ssh
def test_the_server_refuses_the_login(tmp_path: Path) -> None:
    with FaultyServer(Mode.REFUSES_LOGIN, tmp_path) as server:
        code, _, error = ssh(server, "true")
        assert code == 255
        assert "Permission denied" in error
        assert server.sessions == 0


@needs_ssh
def test_A21_the_server_shows_another_host_key(tmp_path: Path) -> None:
    with FaultyServer(Mode.OTHER_HOST_KEY, tmp_path) as server:
        code, _, error = ssh(server, "true")
        assert code == 255
        assert "HOST IDENTIFICATION HAS CHANGED" in error


@needs_ssh
def test_A17_sftp_is_polluted_or_discards_writes(tmp_path: Path) -> None:
    with FaultyServer(Mode.SFTP_POLLUTED, tmp_path) as server:
        assert ssh(server, program="sftp", stdin="pwd\n")[0] == 255
    source = tmp_path / "source"
    source.write_text("text")
    with FaultyServer(Mode.SFTP_DISCARDS, tmp_path) as server:
        code, out, _ = ssh(server, program="sftp", stdin=f"put {source} /target\nls -l /target\n")
    assert code == 0
    assert "Uploading" in out


def first_bytes(server: FaultyServer, count: int, sent: bytes = b"") -> bytes:
    with socket.create_connection((server.host, server.port), timeout=2) as connection:
        connection.sendall(sent)
        received = b""
        while len(received) < count and (piece := connection.recv(4096)):
            received += piece
        return received


def test_F32_the_server_sends_no_banner(tmp_path: Path) -> None:
    with FaultyServer(Mode.NO_BANNER, tmp_path) as server, pytest.raises(TimeoutError):
        first_bytes(server, 1)


def test_F33_the_server_sends_an_endless_banner(tmp_path: Path) -> None:
    with FaultyServer(Mode.ENDLESS_BANNER, tmp_path) as server:
        assert b"SSH-" not in first_bytes(server, 3000)


def test_F33_the_server_answers_as_a_web_server(tmp_path: Path) -> None:
    with FaultyServer(Mode.HTTP, tmp_path) as server:
        assert first_bytes(server, 100, b"SSH-2.0-test\r\n").startswith(b"HTTP/1.1 400")
