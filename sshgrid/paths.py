"""Where things are: the inventory, and for each inventory its state folder, socket, lock and log.

Nothing is created here. Refuses an `./inventory.yaml` that others can write (it says which hosts get our programs), and
gives socket paths that fit into the 108 bytes a Unix socket has. Paths are strings.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from sshgrid.errors import InventoryError, StoreError
from sshgrid.model import Struct
from sshgrid.notation.digest import sha256

INVENTORY = "inventory.yaml"
PACKAGE_DIR = os.path.dirname(os.path.abspath(__file__))  # the folder of the package `sshgrid`
MAX_SOCKET_BYTES = 100


class Places(Struct, frozen=True):
    """Absolute paths. `lock` is held by whoever starts a master while it starts: the master itself must not take it."""

    inventory: str
    inventory_source: str  # "-i" | "environment" | "current folder" | "config" | "default" (not there yet)
    state_dir: str  # 0700, of this inventory only
    state_source: str
    socket: str
    lock: str
    log: str
    config_dir: str
    notes: tuple[str, ...] = ()  # what was found and not taken


def places(
    inventory_flag: str | None,
    environ: Mapping[str, str],
    cwd: str,
    home: str,
    *,
    state_flag: str | None = None,
    must_exist: bool = True,
) -> Places:
    """Find the inventory and what belongs to it. InventoryError when there is none and one `must_exist`."""
    config_dir = _config_dir(environ, home)
    inventory, source, notes = _inventory(inventory_flag, environ, cwd, config_dir)
    if must_exist and not os.path.exists(inventory):
        raise _no_inventory(inventory, source, notes)
    inventory = os.path.realpath(inventory)
    mark = sha256(os.fsencode(inventory)).hexdigest()[:16]
    state_dir, state_source = _state_dir(state_flag, environ, cwd, home, mark)
    return Places(
        inventory=inventory,
        inventory_source=source,
        state_dir=state_dir,
        state_source=state_source,
        socket=_socket(state_dir, environ),
        lock=os.path.join(state_dir, "start.lock"),
        log=os.path.join(state_dir, "master.log"),
        config_dir=config_dir,
        notes=notes,
    )


def private_dir(path: str) -> None:
    """Make `path` ours alone, or StoreError: another's folder there could feed us another's socket."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", "sshgrid doctor") from error
    if complaint := not_private(found, stat.S_ISDIR):
        raise StoreError(
            f"{path} {complaint}", f"ls -ld {path}; move it away, or set SSHGRID_HOME to a folder of yours"
        )


def not_private(found: os.stat_result, is_kind: Callable[[int], bool]) -> str:
    """Why this entry cannot be trusted, "" when it can; `is_kind` as in stat.S_ISDIR."""
    if not is_kind(found.st_mode):
        return "is not what it should be (a link, or something else in its place)"
    if found.st_uid != os.getuid():
        return f"belongs to another user (uid {found.st_uid})"
    if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o022:
        return f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _config_dir(environ: Mapping[str, str], home: str) -> str:
    if own := environ.get("SSHGRID_HOME"):
        return os.path.abspath(own)
    return os.path.join(environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "sshgrid")


def _inventory(
    flag: str | None, environ: Mapping[str, str], cwd: str, config_dir: str
) -> tuple[str, str, tuple[str, ...]]:
    if flag:
        return os.path.join(cwd, os.path.expanduser(flag)), "-i", ()
    if named := environ.get("SSHGRID_INVENTORY"):
        return os.path.join(cwd, os.path.expanduser(named)), "environment", ()
    here, notes = os.path.join(cwd, INVENTORY), tuple[str, ...]()
    if os.path.exists(here):
        danger = _others_can_write(cwd) or _others_can_write(here)
        if not danger:
            return here, "current folder", ()
        notes = (f"./{INVENTORY} is not taken: {danger}; name it with -i to take it all the same",)
    config = os.path.join(config_dir, INVENTORY)
    return config, "config" if os.path.exists(config) else "default", notes


def _others_can_write(path: str) -> str:
    found = os.stat(path)
    if found.st_uid not in (os.getuid(), 0):
        return f"{path} belongs to another user"
    return f"others can write {path}" if found.st_mode & 0o022 else ""


def _no_inventory(path: str, source: str, notes: tuple[str, ...]) -> InventoryError:
    if source == "default":
        looked = f"no inventory: neither ./{INVENTORY} nor {path} is there"
        return InventoryError("\n".join((looked, *notes)), "sshgrid node add NAME [USER@]HOST")
    named = "SSHGRID_INVENTORY" if source == "environment" else source
    return InventoryError(
        f"no such inventory: {path} (named by {named})", f"sshgrid -i {path} node add NAME [USER@]HOST"
    )


def _state_dir(flag: str | None, environ: Mapping[str, str], cwd: str, home: str, mark: str) -> tuple[str, str]:
    if flag:
        return os.path.abspath(os.path.join(cwd, os.path.expanduser(flag))), "--state-dir"
    if named := environ.get("SSHGRID_STATE_DIR"):
        return os.path.abspath(os.path.join(cwd, os.path.expanduser(named))), "SSHGRID_STATE_DIR"
    if own := environ.get("SSHGRID_HOME"):
        return os.path.join(os.path.abspath(own), "state", mark), "SSHGRID_HOME"
    if xdg := environ.get("XDG_STATE_HOME"):
        return os.path.join(xdg, "sshgrid", mark), "XDG_STATE_HOME"
    return os.path.join(home, ".local", "state", "sshgrid", mark), "default"


def _socket(state_dir: str, environ: Mapping[str, str]) -> str:
    plain = os.path.join(state_dir, "master.sock")
    if len(os.fsencode(plain)) <= MAX_SOCKET_BYTES:
        return plain
    mark = sha256(os.fsencode(state_dir)).hexdigest()[:16]
    runtime = environ.get("XDG_RUNTIME_DIR") or "/tmp"  # the folder below it is checked by private_dir
    return os.path.join(runtime, f"sshgrid-{os.getuid()}", f"{mark}.sock")
