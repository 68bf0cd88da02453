"""Opens one SSH connection to one node: the host key that is accepted, the login, and the error when it fails.

Errors of asyncssh and of the system become a `HostError` here and nowhere else. The host key is always checked: there
is no setting that disables it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import socket
from asyncio import selector_events
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncssh

from sshgrid.errors import Dropped, HostError, HostKeyChanged, HostKeyUnknown, LoginRefused, Unreachable
from sshgrid.model import Node, Struct
from sshgrid.ssh.local_server import serve_local

log = logging.getLogger(__name__)

LOGIN_TIMEOUT_SECONDS = 15
READ_BYTES = 64 * 1024
# A lost connection is noticed after interval x (count + 1) seconds.
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
# With asyncssh's own first choice a short packet costs six times as much CPU, and a long one three times.
CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
HOST_KEY_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-256")
SYSTEM_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")


class Dialing(Struct, frozen=True):
    """The part of the user's SSH setup that a connection uses."""

    known_hosts: str = ""  # sshgrid's own file, written by `node add`
    ssh_config: str = "~/.ssh/config"  # "" = none
    agent: str | None = None  # path of the agent's socket; None = no agent


def dialing_from_environ(config_dir: str | Path, environ: Mapping[str, str]) -> Dialing:
    """Return the settings of an environment: sshgrid's known_hosts, the user's ssh_config and agent."""
    return Dialing(
        known_hosts=str(Path(config_dir) / "known_hosts"),
        ssh_config=environ.get("SSHGRID_SSH_CONFIG", "~/.ssh/config"),
        agent=environ.get("SSH_AUTH_SOCK"),
    )


async def dial(node: Node, dialing: Dialing, password: str | None = None) -> asyncssh.SSHClientConnection:
    """Return a logged-in connection: by key, or by password alone when one is given.

    Raises Unreachable, LoginRefused, HostKeyUnknown, HostKeyChanged.
    """
    if node.connection == "local":
        return await serve_local()
    jump = await _through_jumps(node, dialing)
    try:
        connection = await _connect(node, dialing, jump, password)
    except BaseException:
        if jump is not None:
            await end(jump)
        raise
    connection.set_extra_info(jump=jump)
    return connection


async def _connect(
    node: Node, dialing: Dialing, jump: asyncssh.SSHClientConnection | None, password: str | None = None
) -> asyncssh.SSHClientConnection:
    recorder = _KeyRecorder()
    with blame(node, recorder, dialing):
        known_hosts = _known_hosts(node, dialing)
        options: dict[str, object] = {
            "tunnel": jump,
            "client_factory": lambda: recorder,
            "known_hosts": known_hosts,
            "config": config_files(dialing),
            "agent_path": None if node.identity_file else dialing.agent,
            "preferred_auth": "publickey",
            "connect_timeout": node.connect_timeout_seconds,
            "login_timeout": LOGIN_TIMEOUT_SECONDS,
            "keepalive_interval": KEEPALIVE_SECONDS,
            "keepalive_count_max": KEEPALIVE_COUNT,
            **ciphers(node, dialing),
            **_overrides(node),
        }
        if password is not None:
            by_password = {"preferred_auth": "password,keyboard-interactive", "password": password}
            options |= {**by_password, "client_keys": None, "agent_path": None}
        try:
            return await asyncssh.connect(node.ssh_config or node.host, **options)
        except asyncssh.ConnectionLost:
            if recorder.key is not None or _has_keys(node, dialing, known_hosts):
                raise
        return await _connect_by_kind(node, options)


async def _connect_by_kind(node: Node, options: dict[str, object]) -> asyncssh.SSHClientConnection:
    """Connect with one type of host key at a time: Dropbear closes the connection for a type that it does not have."""
    for kind in HOST_KEY_KINDS[:-1]:
        with contextlib.suppress(asyncssh.ConnectionLost):
            return await asyncssh.connect(node.ssh_config or node.host, server_host_key_algs=[kind], **options)
    return await asyncssh.connect(node.ssh_config or node.host, server_host_key_algs=[HOST_KEY_KINDS[-1]], **options)


def _has_keys(node: Node, dialing: Dialing, known_hosts: asyncssh.SSHKnownHosts) -> bool:
    """Return whether known_hosts has a key of this host: then only keys of its type were requested."""
    place = asyncssh.SSHClientConnectionOptions(config=config_files(dialing), host=node.host or node.ssh_config)
    keys, authorities, *_ = known_hosts.match(place.host, "", node.port or place.port)
    return bool(keys or authorities)


def dial_address(node: Node, dialing: Dialing) -> str:
    """Return the address of the server that is dialed first: the first jump host, or the node itself."""
    if node.connection == "local":
        return node.name
    hops = _hops(node, dialing)
    return hops[0] if hops else f"{node.host or node.ssh_config}:{node.port or ''}"


def _hops(node: Node, dialing: Dialing) -> list[str]:
    """Return the hosts of ProxyJump in ssh_config."""
    with blame(node):
        options = asyncssh.SSHClientConnectionOptions(config=config_files(dialing), host=node.ssh_config or node.host)
    hops = options.tunnel if isinstance(options.tunnel, str) else ""
    return [hop for part in hops.split(",") if (hop := part.strip())]


async def _through_jumps(node: Node, dialing: Dialing) -> asyncssh.SSHClientConnection | None:
    """Return the connection to the last jump host, None without one. The host key of each is checked."""
    jump: asyncssh.SSHClientConnection | None = None
    for hop in _hops(node, dialing):
        try:
            jump = await _connect(_hop(node, hop), dialing, jump)
        except BaseException:
            if jump is not None:
                await end(jump)
            raise
    return jump


def _hop(node: Node, text: str) -> Node:
    """Return a jump host `[user@]host[:port]` as a node. The host can be an alias of ssh_config."""
    user, _, place = text.rpartition("@")
    host, _, port = place.rpartition(":") if ":" in place else (place, "", "")
    return Node(
        f"{node.name} (jump host {text})",
        ssh_config=host,
        user=user or None,
        port=int(port) if port.isdigit() else None,
        known_hosts=node.known_hosts,
        connect_timeout_seconds=node.connect_timeout_seconds,
    )


def _overrides(node: Node) -> dict[str, object]:
    """Return the options that the inventory sets, which override ssh_config."""
    options: dict[str, object] = {}
    if node.ssh_config and node.host:
        options["host"] = node.host
    if node.port is not None:
        options["port"] = node.port
    if node.user is not None:
        options["username"] = node.user
    if node.identity_file is not None:
        path = Path(node.identity_file).expanduser()
        if not path.is_file():
            raise LoginRefused(node.name, f"identity file {node.identity_file} does not exist")
        options["client_keys"] = [str(path)]
    return options


def ciphers(node: Node, dialing: Dialing) -> dict[str, object]:
    """Return the option for CIPHERS, unless ssh_config sets ciphers."""
    files = config_files(dialing)
    if files:
        place = asyncssh.SSHClientConnectionOptions(config=files, host=node.ssh_config or node.host, client_keys=None)
        if place.config.get("Ciphers"):
            return {}
    return {"encryption_algs": CIPHERS}


def config_files(dialing: Dialing) -> list[str]:
    """Return the path of the user's ssh_config, if it exists."""
    path = Path(dialing.ssh_config).expanduser() if dialing.ssh_config else None
    return [str(path)] if path and path.is_file() else []


# --- host keys ----------------------------------------------------------------------------------------------------


class _KeyRecorder(asyncssh.SSHClient):
    """Records the key of a host that is not trusted, so that the error can show it."""

    key: asyncssh.SSHKey | None = None
    host = ""
    address = ""
    port = 22

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.key, self.host, self.address, self.port = key, host, addr, port
        return False


def known_hosts_files(node: Node, dialing: Dialing) -> list[Path]:
    """Return the node's own file alone, or else sshgrid's, the user's and the system's, as far as they exist."""
    names = (node.known_hosts,) if node.known_hosts else (dialing.known_hosts, *SYSTEM_KNOWN_HOSTS)
    return [path for name in names if name and (path := Path(name).expanduser()).is_file()]


def _known_hosts(node: Node, dialing: Dialing) -> asyncssh.SSHKnownHosts:
    text = "".join(path.read_text(errors="replace") + "\n" for path in known_hosts_files(node, dialing))
    try:
        return asyncssh.import_known_hosts(text)
    except ValueError:  # ignore invalid lines, as OpenSSH does
        return asyncssh.import_known_hosts("".join(line + "\n" for line in text.splitlines() if _is_valid(line)))


def _is_valid(line: str) -> bool:
    try:
        asyncssh.import_known_hosts(line + "\n")
    except ValueError:
        return False
    return True


def _untrusted(node: Node, dialing: Dialing, recorder: _KeyRecorder) -> HostError:
    """Return the error for a key that is unknown, changed or revoked: asyncssh does not tell them apart."""
    if recorder.key is None:
        return HostKeyUnknown(node.name, "the host key could not be checked")
    fingerprint = recorder.key.get_fingerprint()
    for path in known_hosts_files(node, dialing):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if _revokes(line, recorder):
                return HostKeyChanged(
                    node.name,
                    f"host key revoked: it shows {fingerprint}, which {path}:{number} revokes",
                    "the machine needs a new host key; if it has one, the connection may be intercepted",
                )
            if _names_host(line, recorder):
                return HostKeyChanged(
                    node.name,
                    f"host key changed: it shows {fingerprint}, which is not the key in {path}:{number}",
                    f"if the machine was reinstalled: ssh-keygen -R {shlex.quote(_place(recorder))} -f "
                    f"{shlex.quote(str(path))}, then accept the new key with --accept-new; if not, the connection may "
                    "be intercepted",
                )
    # A jump host in front of a node is accepted together with that node.
    name = node.name.partition(" (jump host ")[0]
    unknown = HostKeyUnknown(node.name, f"unknown host key {fingerprint}", f"sshgrid node check {name} --accept-new")
    line = f"{_place(recorder)} {recorder.key.export_public_key().decode().strip()}"
    unknown.fingerprint, unknown.line = fingerprint, line
    return unknown


def _place(recorder: _KeyRecorder) -> str:
    """Return the host and port as known_hosts names them."""
    return recorder.host if recorder.port == 22 else f"[{recorder.host}]:{recorder.port}"


def _names_host(line: str, recorder: _KeyRecorder) -> bool:
    return not line.lstrip().startswith("@revoked") and bool(_keys_for_host(line, recorder))


def _revokes(line: str, recorder: _KeyRecorder) -> bool:
    """Return whether a line revokes the host's key. Its pattern can match all hosts, so the key must be the same."""
    marker, _, rest = line.strip().partition(" ")
    return marker == "@revoked" and recorder.key in _keys_for_host(rest, recorder)


def _keys_for_host(line: str, recorder: _KeyRecorder) -> list[asyncssh.SSHKey]:
    """Return the keys of hosts and certificate authorities that a line of known_hosts has for this host."""
    with contextlib.suppress(ValueError):
        keys, authorities, *_ = asyncssh.import_known_hosts(line + "\n").match(
            recorder.host, recorder.address, recorder.port
        )
        return [*keys, *authorities]
    return []


def unknown_host_key(node: Node, dialing: Dialing) -> tuple[str, str] | None:
    """Return the fingerprint and the known_hosts line of the first unknown key on the way to a node; None without one.

    For a program without an event loop. Raises HostError for another failure before that point.
    """
    return asyncio.run(_unknown_host_key(node, dialing))


async def _unknown_host_key(node: Node, dialing: Dialing) -> tuple[str, str] | None:
    try:
        await end(await dial(node, dialing))
    except HostKeyUnknown as error:
        return error.fingerprint, error.line
    except LoginRefused:
        return None  # the key was checked before
    return None


# --- errors --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def blame(node: Node, recorder: _KeyRecorder | None = None, dialing: Dialing | None = None) -> Iterator[None]:
    """Turn errors while connecting into a HostError: the machine, or the network to it, is at fault."""
    try:
        yield
    except asyncssh.HostKeyNotVerifiable as error:
        if recorder is None or dialing is None:
            raise HostKeyUnknown(node.name, str(error)) from error
        raise _untrusted(node, dialing, recorder) from error
    except asyncssh.KeyImportError as error:
        why = "needs a passphrase" if "assphrase" in str(error) else f"cannot be read: {_short(error)}"
        raise LoginRefused(
            node.name,
            f"identity file {node.identity_file or 'of ssh_config'} {why}",
            "ssh-add it, and leave identity_file out, so that the agent is asked",
        ) from error
    except asyncssh.PermissionDenied as error:
        raise LoginRefused(
            node.name,
            f"login refused for {node.user or 'the default user'}: no key was accepted",
            "ssh-copy-id, or set identity_file",
        ) from error
    except (asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError) as error:
        raise Unreachable(
            node.name,
            f"the connection ended before login ({error}); sshd may be over MaxStartups, or punish this address",
        ) from error
    except asyncssh.ChannelOpenError as error:
        raise Dropped(node.name, f"no further channel: {error.reason}") from error
    except (asyncssh.Error, ValueError) as error:
        raise Unreachable(node.name, f"no SSH connection: {_short(error)}") from error
    except TimeoutError as error:
        raise Unreachable(node.name, f"no answer within {node.connect_timeout_seconds:g} s") from error
    except socket.gaierror as error:
        why = f"no address for {node.host or node.ssh_config}: {error.strerror}{_missing_alias(node, dialing)}"
        raise Unreachable(node.name, why) from error
    except OSError as error:
        raise Unreachable(node.name, os.strerror(error.errno).lower() if error.errno else str(error)) from error


def _missing_alias(node: Node, dialing: Dialing | None) -> str:
    """Return the end of a message about a Host alias that ssh_config gives no address; "" for other nodes."""
    if node.host or not node.ssh_config or dialing is None:
        return ""
    files = config_files(dialing)
    options = asyncssh.SSHClientConnectionOptions(config=files, host=node.ssh_config, client_keys=None)
    return "" if options.config.get("Hostname") else f"; {dialing.ssh_config or 'ssh_config'} has no HostName for it"


@contextlib.contextmanager
def blame_in_use(node: Node) -> Iterator[None]:
    """Turn errors on an open connection into Dropped: it cannot be used any more."""
    try:
        yield
    except asyncssh.ChannelOpenError as error:
        raise Dropped(node.name, f"no further channel: {error.reason}") from error
    except (asyncssh.Error, OSError) as error:
        raise Dropped(node.name, f"connection lost: {_short(error)}") from error


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:160] or type(error).__name__


def hush_abandoned_transfers(loop: asyncio.AbstractEventLoop) -> None:
    """Log unretrieved errors of asyncssh as DEBUG: it leaves tasks of a lost SFTP transfer, which has failed itself."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), asyncssh.Error) and "never retrieved" in context.get("message", ""):
            log.debug("a lost transfer: %s", context["exception"])
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def read_in_smaller_pieces() -> None:
    """Make asyncio read 64 KiB at a time: malloc maps and unmaps 256 KiB for each read, 12 us of 15 us."""
    selector_events._SelectorSocketTransport.max_size = READ_BYTES  # type: ignore[attr-defined]


async def end(connection: asyncssh.SSHClientConnection) -> None:
    """Close a connection at once. Bytes in the socket's buffer must not reach the node later and start a run."""
    transport_socket = connection.get_extra_info("socket")
    if transport_socket is not None:
        with contextlib.suppress(OSError):
            transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.abort()
    with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
        async with asyncio.timeout(2):
            await connection.wait_closed()
    if (jump := connection.get_extra_info("jump")) is not None:
        await end(jump)
    if (commands := connection.get_extra_info("commands")) is not None:
        await commands.close()
