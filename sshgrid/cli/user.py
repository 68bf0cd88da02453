"""`user`: the users of the SSH gateway, their keys, passwords and limits.

A password is read from the terminal or from standard input, never from an argument, which other users could see.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sshgrid.cli.base import Parsed, Verbs, pass_session
from sshgrid.cli.complete import complete_users
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
    """Manage the users of the SSH gateway.

    `sshgrid master start --listen ADDRESS --ssh-port 4200` opens the gateway.
    """


@user_group.command()
@click.argument("name")
@click.option("--admin", is_flag=True, help="Allow to see and cancel the jobs of all users, and to manage users.")
@click.option("--key", "key_file", metavar="FILE", help="File with public keys to log in with (.pub).")
@pass_session
def add(session: Session, name: str, admin: bool, key_file: str | None) -> int:
    """Create the user NAME."""
    lines = _key_lines(key_file) if key_file else ()
    return _change_user(session, AddUser(name, Role.ADMIN if admin else Role.USER, lines))


@user_group.command()
@click.argument("name", shell_complete=complete_users)
@pass_session
def rm(session: Session, name: str) -> int:
    """Remove the user NAME. Sessions end and waiting jobs are cancelled; running jobs continue."""
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

    limits = [
        "" if caps.running is None else f"jobs {caps.running}",
        "" if caps.queued is None else f"queued {caps.queued}",
        "" if caps.wall_seconds is None else f"time {format_duration(caps.wall_seconds)}",
        "" if caps.output_bytes is None else f"output {format_size(caps.output_bytes)}",
        "" if caps.upload_bytes is None else f"upload {format_size(caps.upload_bytes)}",
    ]
    return ", ".join(filter(None, limits)) or "none"


def _user_object(line: UserLine) -> dict[str, object]:
    from sshgrid.terminal.render import iso

    value: dict[str, object] = msgspec.to_builtins(line)
    return value | {"schema": 1, "created": iso(line.created)}


def _change_user(session: Session, request: UsersQuestion) -> int:
    with session.connect() as connection:
        (line,) = connection.request(request, UsersReply).users
    session.show(lambda: _user_object(line), str)
    return 0


@user_group.command()
@click.argument("name", shell_complete=complete_users)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--remove", is_flag=True, help="Remove the password, so that only keys can log in.")
@pass_session
def passwd(session: Session, name: str, password_stdin: bool, remove: bool) -> int:
    """Set the password of NAME."""
    password = "" if remove else _read_password() if password_stdin else _prompt_password(session, name)
    return _change_user(session, SetPassword(name, password))


def _read_password() -> str:
    line = "" if sys.stdin is None else sys.stdin.readline(MAX_PASSWORD_LINE)
    if not line.strip():
        raise UsageError("standard input contains no password")
    return line.rstrip("\r\n")


def _prompt_password(session: Session, name: str) -> str:
    if session.no_input or sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for a password", "--password-stdin")
    return str(click.prompt(f"New password for {name}", hide_input=True, confirmation_prompt=True, err=True))


@user_group.command()
@click.argument("name", shell_complete=complete_users)
@pass_session
def disable(session: Session, name: str) -> int:
    """Disable the account NAME. Its sessions end."""
    return _change_user(session, DisableUser(name))


@user_group.command()
@click.argument("name", shell_complete=complete_users)
@pass_session
def enable(session: Session, name: str) -> int:
    """Enable the account NAME again."""
    return _change_user(session, DisableUser(name, disabled=False))


# --- keys ------------------------------------------------------------------------------------------------------------


@user_group.group("key", cls=Verbs)
def key_group() -> None:
    """Manage the public keys of a user."""


@key_group.command("add")
@click.argument("name", shell_complete=complete_users)
@click.argument("file")
@pass_session
def add_key(session: Session, name: str, file: str) -> int:
    """Add the public keys in FILE to the user NAME (`-` is standard input)."""
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
    """Remove the key of NAME with this FINGERPRINT, which can be shortened."""
    return _change_user(session, RemoveKey(name, fingerprint))


def _key_lines(path: str) -> tuple[str, ...]:
    """The lines of a file of public keys, which the master checks. Raises FileMissing, UsageError."""
    from sshgrid.client import files

    try:
        if path == "-":
            text = sys.stdin.read(MAX_KEY_FILE) if sys.stdin else ""
        else:
            with files.open_binary(path) as file:
                text = file.read(MAX_KEY_FILE).decode("utf-8", "replace")
    except FileNotFoundError:
        raise FileMissing(
            f"no such file: {path}", "ssh-keygen -t ed25519; then use the file that ends in .pub"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if "PRIVATE KEY" in text:  # a private key must not be sent
        raise UsageError(f"{path} is a private key; use the public key", f"{path}.pub")
    lines = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    if not lines:
        raise UsageError(f"{path} contains no public key", "use the file that ends in .pub")
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
@click.option(
    "--jobs", "running", metavar="N|none", type=_or_none("number"), help="Limit of running jobs; further ones wait."
)
@click.option(
    "--queued", metavar="N|none", type=_or_none("number"), help="Limit of waiting jobs; further ones are rejected."
)
@click.option("--time", "wall_seconds", metavar="D|none", type=_or_none("duration"), help="Time limit of one run.")
@click.option(
    "--output", "output_bytes", metavar="SIZE|none", type=_or_none("size"), help="Size limit for the output of one run."
)
@click.option(
    "--upload",
    "upload_bytes",
    metavar="SIZE|none",
    type=_or_none("size"),
    help="Size limit for the files of one job, and for the user's folder.",
)
@pass_session
def limit(session: Session, /, name: str, **limits: Any) -> int:
    """Set limits for the user NAME; without options, show them."""
    from sshgrid.errors import NoSuchUser

    changes = {key: None if value == "none" else value for key, value in limits.items() if value is not None}
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
