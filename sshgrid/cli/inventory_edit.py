"""`inventory edit` and `inventory import`: the file in a person's editor, and nodes out of other tools' files.

Refuses to replace a file that changed meanwhile; what the person wrote is then kept beside it.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import glob
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sshgrid.client.inventory_change import edit_inventory, reload_master
from sshgrid.client.session import Session
from sshgrid.errors import FileMissing, InventoryError, UsageError

if TYPE_CHECKING:
    from sshgrid.inventory.foreign import Imported
    from sshgrid.paths import Places

EMPTY = b"version: 1\nnodes:\n  # name: {host: address, user: account, tags: [words]}\n"
MAX_INCLUDES = 100


# --- edit ------------------------------------------------------------------------------------------------------------


def edit(session: Session) -> int:
    """The file in $VISUAL or $EDITOR; it is replaced when it is valid and nobody else has changed it."""
    from sshgrid.inventory import edit as inventory_edit
    from sshgrid.inventory import read_file

    if session.no_input:
        raise UsageError("an editor asks, and --no-input forbids that", "sshgrid node add NAME HOST")
    places = session.places(must_exist=False)
    path = Path(places.inventory)
    before = read_file(path) if path.exists() else None
    after = _edited_text(session, places, EMPTY if before is None else before)
    changed = after != (EMPTY if before is None else before)
    if changed:
        try:
            inventory_edit.replace(path, before, after)
        except UsageError as error:
            raise _kept(error, path, after) from error
        reload_master(session, places)
    session.show(
        lambda: {"schema": 1, "path": places.inventory, "changed": changed},
        lambda: f"{places.inventory}: {'changed' if changed else 'nothing changed'}\n",
    )
    return 0


def _edited_text(session: Session, places: Places, before: bytes) -> bytes:
    """What the person left in the editor, once it is valid; or what they began with."""
    from sshgrid import inventory

    with tempfile.TemporaryDirectory(prefix="sshgrid-") as folder:
        copy = Path(folder) / "inventory.yaml"
        copy.write_bytes(before)
        while True:
            _open_editor(session, copy)
            after = inventory.read_file(copy)
            if after == before:
                return before
            try:
                inventory.parse(after, places.inventory)
            except InventoryError as error:
                if not _again(session, error):
                    raise _kept(error, Path(places.inventory), after) from error
            else:
                return after


def _again(session: Session, error: InventoryError) -> bool:
    session.warn(error.message)
    try:
        return session.confirm("Edit it again?", "")
    except UsageError:  # nobody is there
        return False


def _open_editor(session: Session, copy: Path) -> None:
    editor = session.environ.get("VISUAL") or session.environ.get("EDITOR") or "vi"
    words = shlex.split(editor)
    try:
        status = subprocess.run([*words, str(copy)], check=False).returncode
    except OSError as error:
        raise UsageError(f"{words[0]}: {error.strerror}", "EDITOR=nano sshgrid inventory edit") from error
    if status != 0:
        raise UsageError(f"{editor} ended with {status}; nothing was changed")


def _kept(error: UsageError, path: Path, text: bytes) -> UsageError:
    """The same error, after the person's text was put where it can be found."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".edited", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    return type(error)(f"{error.message}\nwhat you wrote is in {name}", f"diff {path} {name}")


# --- import ----------------------------------------------------------------------------------------------------------


def take(session: Session, ansible: str | None, ssh_config: str | None, *, dry_run: bool) -> int:
    """Entries for what the other file names, after the last node; or only shown, with `dry_run`."""
    from sshgrid.inventory import edit as inventory_edit

    found = _from_ansible(ansible) if ansible is not None else _from_ssh_config(session, ssh_config or "*")
    if not found.nodes:
        what = f": {'; '.join(found.notes)}" if found.notes else ""
        raise UsageError(f"there is no host to import{what}", "sshgrid node add NAME HOST")
    places = session.places(must_exist=False)
    if dry_run:
        path = Path(places.inventory)
        text = _text(path) if path.exists() else ""
        lines = inventory_edit.new_lines(text, inventory_edit.add_nodes(text, found.nodes))
    else:
        lines = edit_inventory(session, lambda text: inventory_edit.add_nodes(text, found.nodes), create=True)
    _show(session, places, lines, found, dry_run=dry_run)
    return 0


def _show(session: Session, places: Places, lines: list[str], found: Imported, *, dry_run: bool) -> None:
    from sshgrid.cli.node_add import written_text

    key = "would_write" if dry_run else "written"
    session.show(
        lambda: {"schema": 1, "path": places.inventory, key: lines, "nodes": [*found.nodes], "notes": found.notes},
        lambda: "".join(f"{line}\n" for line in lines) if dry_run else written_text(places.inventory, lines),
    )
    for note in () if session.json else found.notes:
        session.warn(f"not imported: {note}")


def _text(path: Path) -> str:
    from sshgrid.inventory import read_file

    return read_file(path).decode("utf-8", "replace")


def _from_ansible(name: str) -> Imported:
    from sshgrid.inventory import foreign

    path = Path(name).expanduser()
    if path.is_dir() or os.access(path, os.X_OK):
        kind = "a folder" if path.is_dir() else "a program"
        hint = f"ansible-inventory -i {shlex.quote(name)} --list --yaml >hosts.yaml"
        raise UsageError(f"{name} is {kind}, which Ansible alone understands", hint)
    found = foreign.from_ansible(_foreign_text(path), path.name)
    beside = [folder for folder in ("group_vars", "host_vars") if (path.parent / folder).is_dir()]
    found.notes += [f"{folder}/ beside it was not read" for folder in beside]
    return found


def _foreign_text(path: Path) -> str:
    try:
        return _text(path)
    except InventoryError as error:
        if not path.exists():
            raise FileMissing(f"{path}: no such file") from error
        raise


def _from_ssh_config(session: Session, pattern: str) -> Imported:
    from sshgrid.inventory import foreign

    path = Path(session.environ.get("SSHGRID_SSH_CONFIG", "~/.ssh/config")).expanduser()
    return foreign.from_ssh_config(_with_includes(path), pattern)


def _with_includes(first: Path) -> Iterator[str]:
    """The texts of the file and of those it includes; what is not there is passed over, as ssh does."""
    from sshgrid.inventory import foreign

    waiting, seen = [first], set[Path]()
    while waiting and len(seen) < MAX_INCLUDES:
        path = waiting.pop(0)
        if path in seen or (path != first and not path.is_file()):
            continue
        seen.add(path)
        text = _foreign_text(path)
        yield text
        named = [word for key, words in foreign.ssh_config_lines(text) if key == "include" for word in words]
        for word in named:
            waiting += map(Path, sorted(glob.glob(str(Path("~/.ssh").expanduser() / Path(word).expanduser()))))
