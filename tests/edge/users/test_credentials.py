"""Public keys are checked for kind and length; passwords are hashed slowly without blocking the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sshgrid.errors import UsageError
from sshgrid.users import credentials
from sshgrid.users.credentials import QUEUE, THREADS, Busy, Passwords


def generated(folder: Path, *words: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "ann@laptop", "-f", str(folder / "k"), *words], check=True)
    return folder / "k"


@pytest.mark.parametrize("words", [("-t", "ed25519"), ("-t", "ecdsa", "-b", "384"), ("-t", "rsa", "-b", "2048")])
def test_a_key_has_the_fingerprint_that_ssh_keygen_prints(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = generated(tmp_path, *words)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", str(path)], check=True, capture_output=True, text=True).stdout
    key = credentials.public_key(path.with_suffix(".pub").read_text().strip())
    assert key.fingerprint == shown.split()[1]
    assert key.line.endswith(" ann@laptop")


def test_an_unusable_key_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = generated(tmp_path, "-t", "rsa", "-b", "1024")
    good = "AAAAC3NzaC1lZDI1NTE5AAAAIJ2b0J0yKQ0n0cL7Y1l0D8c6bZ1kqv0m1c4m3u0l8j9W"
    for text, reason in (
        (path.with_suffix(".pub").read_text(), "1024 bits is too short"),
        (path.read_text(), "private key"),
        ("", "not a public key"),
        ("ssh-dss AAAA", "not a kind of key"),
        ('command="sh" ssh-ed25519 ' + good, "not a kind of key"),
        ("ssh-ed25519 !!!!", "damaged"),
        ("ssh-ed25519 " + good[:-8], "damaged"),
        ("ssh-rsa " + good, "damaged"),
        ("ssh-ed25519 " + good + "\x1b[2J", "not a public key"),
    ):
        with pytest.raises(UsageError, match=reason):
            credentials.public_key(text.strip())


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    passwords = Passwords()
    yield passwords
    passwords.close()


async def test_only_the_password_itself_fits_its_argon2id_hash(passwords: Passwords) -> None:
    kept = await passwords.hash("correct horse")
    assert kept.startswith("$argon2id$")
    assert "correct" not in kept
    assert await passwords.fits("correct horse", kept)
    for wrong in ("correct hors", "", "correct horse ", "\udcff", "x" * 100_000):
        assert not await passwords.fits(wrong, kept)
    for refused in ("short", "x" * 2000):
        with pytest.raises(UsageError):
            await passwords.hash(refused)


async def test_a_missing_password_never_fits_and_takes_as_long(passwords: Passwords) -> None:
    kept = await passwords.hash("correct horse")
    await passwords.fits("x", "")
    spent = []
    for known in (kept, ""):
        began = time.perf_counter()
        assert [await passwords.fits("wrong", known) for _ in range(5)] == [False] * 5
        spent.append(time.perf_counter() - began)
    assert 0.4 < spent[0] / spent[1] < 2.5


async def test_A28_guesses_neither_stop_the_loop_nor_queue_without_end(passwords: Passwords) -> None:
    kept = await passwords.hash("correct horse")
    guesses = [asyncio.create_task(passwords.fits("wrong", kept)) for _ in range(THREADS + QUEUE + 5)]
    longest, last = 0.0, time.perf_counter()
    while not all(guess.done() for guess in guesses):
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    outcomes = await asyncio.gather(*guesses, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome is not False] == [Busy] * 5
    assert longest < 0.25
