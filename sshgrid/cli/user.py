"""`user`: who may come in through the door, with which keys and password, and how much each may have.

A password is asked for on the terminal or read from standard input. Refuses one as an argument: those are seen by all.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sshgrid.cli.base import Verbs, pass_session
from sshgrid.cli.completion import complete_users
from sshgrid.cli.options import Parsed
from sshgrid.client.session import Session
from sshgrid.errors import FileMissing, UsageError
from sshgrid.model import Caps, Role
from sshgrid.protocol.user_messages import (
    AddKey,
    AddUser,
    DisableUser,
    RemoveKey,
    RemoveUser,
    SetCaps,
    SetPassword,
    UserLine,
    Users,
    UsersReply,
)

if TYPE_CHECKING:
    from sshgrid.protocol.user_messages import UsersQuestion

MAX_KEY_FILE = 256 * 1024
MAX_PASSWORD_LINE = 4096


@click.group("user", cls=Verbs)
def user_group() -> None:
    """Users of the door. The door is opened by `sshgrid master start --listen ADDRESS --ssh-port 4200`."""


@user_group.command()
@click.argument("name")
@click.option("--admin", is_flag=True, help="May see and end everybody's jobs, and change users.")
@click.option("--key", "key_file", metavar="FILE", help="A public key to log in with (.pub), or several.")
@pass_session
def add(session: Session, name: str, admin: bool, key_file: str | None) -> int:
    """Let NAME in."""
    lines = _key_lines(key_file) if key_file else ()
    return _changed(session, AddUser(name, Role.ADMIN if admin else Role.USER, lines))


@user_group.command()
@click.argument("name", shell_complete=complete_users)
@pass_session
def rm(session: Session, name: str) -> int:
    """Let NAME in no more: open sessions and waiting jobs end, what runs goes on."""
    from sshgrid.protocol.messages import Done

    with session.connect() as connection:
        count = connection.request(RemoveUser(name), Done).count
    session.show(lambda: {"schema": 1, "removed": name, "jobs_cancelled": count}, str)
    return 0


@user_group.command()
@pass_session
def ls(session: Session) -> int:
    """List users."""
    from sshgrid.terminal import render

    with session.connect() as connection:
        users = connection.request(Users(), UsersReply).users
    header = ("NAME", "ROLE", "KEYS", "PASSWORD", "RUNNING", "QUEUED", "LIMITS")
    session.show(
        lambda: {"schema": 1, "users": [_user_object(line) for line in users]},
        lambda: render.table(header, map(_row, users), session.out),
    )
    return 0


def _row(line: UserLine) -> tuple[str, ...]:
    role = f"{line.role} (disabled)" if line.disabled else str(line.role)
    counts = str(len(line.keys)), "yes" if line.password else "no", str(line.running), str(line.queued)
    return line.name, role, *counts, _caps_text(line.caps)


def _caps_text(caps: Caps) -> str:
    from sshgrid.notation.quantities import format_duration, format_size

    words = [
        "" if caps.running is None else f"jobs {caps.running}",
        "" if caps.queued is None else f"queued {caps.queued}",
        "" if caps.wall_seconds is None else f"time {format_duration(caps.wall_seconds)}",
        "" if caps.output_bytes is None else f"output {format_size(caps.output_bytes)}",
        "" if caps.upload_bytes is None else f"upload {format_size(caps.upload_bytes)}",
    ]
    return ", ".join(filter(None, words)) or "none"


def _user_object(line: UserLine) -> dict[str, object]:
    from sshgrid.terminal.render import iso

    value: dict[str, object] = msgspec.to_builtins(line)
    return value | {"schema": 1, "created": iso(line.created)}


def _changed(session: Session, request: UsersQuestion) -> int:
    with session.connect() as connection:
        (line,) = connection.request(request, UsersReply).users
    session.show(lambda: _user_object(line), str)
    return 0


@user_group.command()
@click.argument("name", shell_complete=complete_users)
@click.option("--password-stdin", is_flag=True, help="Read it from standard input instead of asking.")
@click.option("--remove", is_flag=True, help="Take the password away: keys alone.")
@pass_session
def passwd(session: Session, name: str, password_stdin: bool, remove: bool) -> int:
    """Set the password of NAME."""
    password = "" if remove else _read_password() if password_stdin else _ask_password(session, name)
    return _changed(session, SetPassword(name, password))


def _read_password() -> str:
    line = "" if sys.stdin is None else sys.stdin.readline(MAX_PASSWORD_LINE)
    if not line.strip():
        raise UsageError("no password came on standard input")
    return line.rstrip("\r\n")


def _ask_password(session: Session, name: str) -> str:
    if session.no_input or sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("Nobody is there to be asked for a password.", "--password-stdin")
    return str(click.prompt(f"New password for {name}", hide_input=True, confirmation_prompt=True, err=True))


@user_group.command()
@click.argument("name", shell_complete=complete_users)
@pass_session
def disable(session: Session, name: str) -> int:
    """Lock NAME out; open sessions end."""
    return _changed(session, DisableUser(name))


@user_group.command()
@click.argument("name", shell_complete=complete_users)
@pass_session
def enable(session: Session, name: str) -> int:
    """Let NAME in again."""
    return _changed(session, DisableUser(name, disabled=False))


# --- keys ------------------------------------------------------------------------------------------------------------


@user_group.group("key", cls=Verbs)
def key_group() -> None:
    """Public keys of a user."""


@key_group.command("add")
@click.argument("name", shell_complete=complete_users)
@click.argument("file")
@pass_session
def add_key(session: Session, name: str, file: str) -> int:
    """Let NAME log in with the public key in FILE (`-` is standard input)."""
    with session.connect() as connection:
        replies = [connection.request(AddKey(name, line), UsersReply) for line in _key_lines(file)]
    session.show(lambda: _user_object(replies[-1].users[0]), str)
    return 0


@key_group.command("ls")
@click.argument("name", shell_complete=complete_users)
@pass_session
def list_keys(session: Session, name: str) -> int:
    """List the keys of NAME."""
    from sshgrid.errors import NoSuchUser
    from sshgrid.terminal import render

    with session.connect() as connection:
        found = [line for line in connection.request(Users(), UsersReply).users if line.name == name]
    if not found:
        raise NoSuchUser(f"no such user: {name}", "sshgrid user ls")
    rows = [(key.fingerprint, *[*key.line.split(" ", 2), ""][:3:2]) for key in found[0].keys]
    session.show(
        lambda: {"schema": 1, "keys": msgspec.to_builtins(found[0].keys)},
        lambda: render.table(("FINGERPRINT", "TYPE", "COMMENT"), rows, session.out),
    )
    return 0


@key_group.command("rm")
@click.argument("name", shell_complete=complete_users)
@click.argument("fingerprint")
@pass_session
def remove_key(session: Session, name: str, fingerprint: str) -> int:
    """Take a key of NAME away: its FINGERPRINT, or a beginning of it."""
    return _changed(session, RemoveKey(name, fingerprint))


def _key_lines(path: str) -> tuple[str, ...]:
    """The lines of a file of public keys; whether they are any good is the master's to say."""
    from sshgrid.client import files

    try:
        if path == "-":
            text = sys.stdin.read(MAX_KEY_FILE) if sys.stdin else ""
        else:
            with files.open_binary(path) as file:
                text = file.read(MAX_KEY_FILE).decode("utf-8", "replace")
    except FileNotFoundError:
        raise FileMissing(
            f"no such file: {path}", "ssh-keygen -t ed25519; then give the file that ends in .pub"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if "PRIVATE KEY" in text:  # it must not leave this machine, not even to be refused
        raise UsageError(f"{path} is a private key: keep it", f"{path}.pub")
    lines = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    if not lines:
        raise UsageError(f"{path}: there is no public key in it", "give the file that ends in .pub")
    return lines


# --- limits ----------------------------------------------------------------------------------------------------------


def _or_none(parse: str) -> Parsed:
    from sshgrid.notation import quantities

    def value(text: str) -> object:
        if text == "none":
            return "none"
        if parse == "number":
            if not text.isascii() or not text.isdigit():
                raise UsageError(f"not a number: {text!r}", "a number, or none")
            return int(text)
        return quantities.parse_duration(text) if parse == "duration" else quantities.parse_size(text)

    return Parsed(parse, value)


@user_group.command()
@click.argument("name", shell_complete=complete_users)
@click.option("--jobs", "running", metavar="N|none", type=_or_none("number"), help="Jobs that run; others wait.")
@click.option("--queued", metavar="N|none", type=_or_none("number"), help="Jobs that wait; others are refused.")
@click.option("--time", "wall_seconds", metavar="D|none", type=_or_none("duration"), help="Of one run.")
@click.option("--output", "output_bytes", metavar="SIZE|none", type=_or_none("size"), help="Of one run.")
@click.option(
    "--upload", "upload_bytes", metavar="SIZE|none", type=_or_none("size"), help="Of one job, and of the user's folder."
)
@pass_session
def limit(session: Session, /, name: str, **wanted: Any) -> int:
    """Say how much NAME may have; without options show it."""
    from sshgrid.errors import NoSuchUser

    changes = {key: None if value == "none" else value for key, value in wanted.items() if value is not None}
    with session.connect() as connection:
        found = [line for line in connection.request(Users(), UsersReply).users if line.name == name]
        if not found:
            raise NoSuchUser(f"no such user: {name}", "sshgrid user ls")
        (line,) = found
        if changes:
            caps = msgspec.structs.replace(line.caps, **changes)
            (line,) = connection.request(SetCaps(name, caps), UsersReply).users
    session.show(lambda: _user_object(line), lambda: _caps_text(line.caps) + "\n")
    return 0
