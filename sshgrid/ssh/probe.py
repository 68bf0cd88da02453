"""First contact with a node that is about to be added, and the installation of the user's public key on it.

For the command line, which has no event loop: each call opens and closes one connection. A password is used for one
login and not stored.
"""

from __future__ import annotations

import asyncio
import base64
import shlex
from importlib import resources
from pathlib import Path

import asyncssh

from sshgrid.errors import LoginRefused, NodeUnfit, UsageError
from sshgrid.model import Node
from sshgrid.ssh.channels import RemoteShell
from sshgrid.ssh.connect import Dialing, blame_in_use, config_files, dial, end
from sshgrid.ssh.library import contact_script
from sshgrid.ssh.parsers import Found, parse_contact

DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_AUTHORIZE = (resources.files("sshgrid") / "remote" / "authorize.sh").read_bytes()


def first_contact(node: Node, dialing: Dialing) -> Found:
    """Return what first contact finds. Raises a HostError that says why the machine cannot be a node."""
    return parse_contact(node.name, asyncio.run(_run(node, dialing, contact_script(node, ()))))


def install_key(node: Node, dialing: Dialing, password: str, key: str) -> bool:
    """Allow this public key to log in. Return False when it was allowed already. Raises LoginRefused, NodeUnfit."""
    script = b"set -- " + shlex.quote(key).encode() + b"\n" + _AUTHORIZE
    try:
        answer = asyncio.run(_run(node, dialing, script, password)).decode("utf-8", "replace")
    except LoginRefused as error:
        raise LoginRefused(
            node.name,
            f"login refused for {node.user or 'the default user'}: the password was wrong, or none is accepted",
            "ask the administrator of the machine to install your public key",
        ) from error
    lines = dict(line.partition(" ")[::2] for line in answer.splitlines())
    if "unfit" in lines:
        raise NodeUnfit(node.name, lines["unfit"])
    if "loose" in lines:
        hint = f"run on the node: chmod go-w {lines['loose']}"
        raise NodeUnfit(node.name, f"other users can write {lines['loose']}, so sshd accepts no key from it", hint)
    return "added" in lines


async def _run(node: Node, dialing: Dialing, script: bytes, password: str | None = None) -> bytes:
    connection = await dial(node, dialing, password)
    try:
        with blame_in_use(node):
            shell = await RemoteShell.open(node, connection)
            return (await shell.request(script))[1]
    finally:
        await end(connection)


# --- the public key ---------------------------------------------------------------------------------------------------


def public_key(node: Node, dialing: Dialing) -> str:
    """Return the public key that a login to this node offers first. Raises UsageError when there is none."""
    if node.identity_file:
        return _public_part(Path(node.identity_file).expanduser())
    options = asyncssh.SSHClientConnectionOptions(config=config_files(dialing), host=node.ssh_config or node.host)
    named = options.config.get("IdentityFile") or ()
    usual = [Path("~/.ssh").expanduser() / name for name in DEFAULT_KEYS]
    for path in (*(Path(str(name)).expanduser() for name in (named if isinstance(named, list) else ())), *usual):
        if path.is_file():
            return _public_part(path)
    if dialing.agent and (lines := asyncio.run(_agent_keys(dialing.agent))):
        return lines[0]
    raise UsageError("--copy-key: no public key was found", "ssh-keygen -t ed25519")


def _public_part(path: Path) -> str:
    """Read the .pub file beside a private key, or derive it from the private key."""
    beside = path.with_name(f"{path.name}.pub")
    try:
        key = asyncssh.read_public_key(beside) if beside.is_file() else asyncssh.read_private_key(path)
        return key.export_public_key().decode().strip()
    except OSError as error:
        raise UsageError(f"--copy-key: {path}: {error.strerror}", "ssh-keygen -t ed25519") from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise UsageError(f"--copy-key: {path}: {error}", f"ssh-keygen -y -f {path} >{beside}") from error


async def _agent_keys(path: str) -> list[str]:
    try:
        async with asyncssh.SSHAgentClient(path) as agent:
            pairs = [(pair.algorithm.decode(), pair.public_data) for pair in await agent.get_keys()]
    except (OSError, ValueError, asyncssh.Error):
        return []
    return [f"{kind} {base64.b64encode(blob).decode()}" for kind, blob in pairs if "-cert-" not in kind]
