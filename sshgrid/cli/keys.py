"""Host keys, which the user confirms, and the installation of the user's own key on a node.

A password is read from the terminal (or, without one, from the first line of standard input), used once and dropped. It
is never read from an argument, the environment or a file.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sshgrid.client.session import Session
from sshgrid.errors import HostKeyUnknown, UsageError

if TYPE_CHECKING:
    from sshgrid.model import Node
    from sshgrid.ssh.connect import Dialing

MAX_JUMPS = 8  # hosts on the way to a node, each with a key
_CHANGED_KEY = re.compile(r"host key changed: .* the key in (.+):\d+$")  # in the message of HostKeyChanged


# --- host keys -------------------------------------------------------------------------------------------------------


def accept(session: Session, nodes: Iterable[Node]) -> None:
    """Add each unknown host key of these nodes, and of the jump hosts on the way, to known_hosts."""
    from sshgrid.ssh.connect import dialing_from_environ, unknown_host_key

    dialing = dialing_from_environ(session.places().config_dir, os.environ)
    for node in nodes:
        for _ in range(MAX_JUMPS):
            found = unknown_host_key(node, dialing)
            if found is None:
                break
            confirm(session, node, *found, prompt=False)


def confirm(session: Session, node: Node, fingerprint: str, line: str, *, prompt: bool) -> None:
    """Show a host key, ask for confirmation, and add it to known_hosts. HostKeyUnknown when the user declines."""
    session.warn(f"{node.name}: host key {fingerprint} of {line.split()[0]}")
    if prompt and not session.confirm("Is this the key of that machine?", "repeat the command with --accept-new"):
        raise HostKeyUnknown(node.name, f"unknown host key {fingerprint}, and you did not confirm it")
    config_dir = session.places(must_exist=False).config_dir
    remember_key(os.path.expanduser(node.known_hosts or os.path.join(config_dir, "known_hosts")), line)


def remember_key(known_hosts: str, line: str) -> None:
    """Append one line durably; a new file is private (0600)."""
    os.makedirs(os.path.dirname(known_hosts), mode=0o700, exist_ok=True)
    descriptor = os.open(known_hosts, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * broken + line.strip().encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remedy(node: Node, reason: str) -> str:
    """The hint for a node that cannot be used; `reason` is that of the HostError."""
    changed = _CHANGED_KEY.search(reason)
    if changed is None:
        return ssh_command(node)
    place = f"[{node.host}]:{node.port}" if node.port not in (None, 22) else node.host
    remove = f"ssh-keygen -R {shlex.quote(place)} -f {shlex.quote(changed[1])}" if node.host else "remove that line"
    return f"if the machine was reinstalled: {remove}, then: sshgrid node check {node.name} --accept-new"


def ssh_command(node: Node) -> str:
    """The command that connects to this node without sshgrid, and shows what ssh reports; "" for this machine."""
    if node.connection == "local":
        return ""
    port = f"-p {node.port} " if node.port is not None else ""
    return f"ssh {port}{_account(node)}"


# --- the key of the user ---------------------------------------------------------------------------------------------


def copy(session: Session, node: Node, dialing: Dialing, passwords: list[str]) -> None:
    """Install the user's public key on a node. An entered password is kept only in `passwords`."""
    from sshgrid.ssh import probe

    key = probe.public_key(node, dialing)
    if not passwords:
        passwords.append(_read_password(session, f"Password of {_account(node)}: "))
    added = probe.install_key(node, dialing, passwords[0], key)
    session.note(f"{node.name}: your {key.split()[0]} key {'is installed' if added else 'was already installed'}")


def _account(node: Node) -> str:
    place = node.ssh_config or node.host
    return f"{node.user}@{place}" if node.user else place


def _read_password(session: Session, question: str) -> str:
    if sys.stdin is not None and sys.stdin.isatty():
        if session.no_input:
            raise UsageError("--copy-key asks for a password, and --no-input forbids it")
        import getpass

        password = getpass.getpass(session.err.safe(question))
    else:
        password = sys.stdin.readline().rstrip("\r\n") if sys.stdin is not None else ""
    if not password:
        raise UsageError(
            "--copy-key needs the password of the account once, and none was given", "enter it at a terminal"
        )
    return password
