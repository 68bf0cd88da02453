"""`inventory edit` and `inventory import`: edit the file in an editor, and add nodes from the files of other tools.

A file that changed meanwhile is not replaced; the user's text is then saved beside it.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

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
    from sshgrid.inventory.importers import Imported
    from sshgrid.paths import Places

EMPTY = b"version: 1\nnodes:\n  # name: {host: address, user: account, tags: [words]}\n"
MAX_INCLUDES = 100


# --- edit -------------------------------------------------------------------------------------------------------------


def edit(session: Session) -> int:
    """Edit the inventory in $VISUAL or $EDITOR; replace it if the text is valid and the file is unchanged."""
    from sshgrid.inventory import edit as inventory_edit
    from sshgrid.inventory import read_file

    if session.no_input:
        raise UsageError("an editor needs input, and --no-input forbids it", "sshgrid node add NAME HOST")
    places = session.places(must_exist=False)
    path = Path(places.inventory)
    before = read_file(path) if path.exists() else None
    after = _edited_text(session, places, EMPTY if before is None else before)
    changed = after != (EMPTY if before is None else before)
    if changed:
        try:
            inventory_edit.replace(path, before, after)
        except UsageError as error:
            raise _with_saved_text(error, path, after) from error
        reload_master(session, places)
    session.show(
        lambda: {"schema": 1, "path": places.inventory, "changed": changed},
        lambda: f"{places.inventory}: {'changed' if changed else 'unchanged'}\n",
    )
    return 0


def _edited_text(session: Session, places: Places, before: bytes) -> bytes:
    """The edited text once it is valid, or the text before. InventoryError when the user stops editing."""
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
                if not _edit_again(session, error):
                    raise _with_saved_text(error, Path(places.inventory), after) from error
            else:
                return after


def _edit_again(session: Session, error: InventoryError) -> bool:
    session.warn(error.message)
    try:
        return session.confirm("Edit it again?", "")
    except UsageError:  # no prompt is possible
        return False


def _open_editor(session: Session, copy: Path) -> None:
    editor = session.environ.get("VISUAL") or session.environ.get("EDITOR") or "vi"
    argv = shlex.split(editor)
    try:
        status = subprocess.run([*argv, str(copy)], check=False).returncode
    except OSError as error:
        raise UsageError(f"{argv[0]}: {error.strerror}", "EDITOR=nano sshgrid inventory edit") from error
    if status != 0:
        raise UsageError(f"{editor} ended with status {status}; the inventory was not changed")


def _with_saved_text(error: UsageError, path: Path, text: bytes) -> UsageError:
    """The same error, with the path under which the user's text was saved."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".edited", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    return type(error)(f"{error.message}\nyour text is saved in {name}", f"diff {path} {name}")


# --- import -----------------------------------------------------------------------------------------------------------


def import_hosts(session: Session, ansible: str | None, ssh_config: str | None, *, dry_run: bool) -> int:
    """Add the hosts of another tool's file after the last node; with `dry_run` only print the lines."""
    from sshgrid.inventory import edit as inventory_edit

    found = _from_ansible(ansible) if ansible is not None else _from_ssh_config(session, ssh_config or "*")
    if not found.nodes:
        what = f": {'; '.join(found.notes)}" if found.notes else ""
        raise UsageError(f"no host to import{what}", "sshgrid node add NAME HOST")
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
    from sshgrid.inventory import importers

    path = Path(name).expanduser()
    if path.is_dir() or os.access(path, os.X_OK):
        kind = "a folder" if path.is_dir() else "a program"
        hint = f"ansible-inventory -i {shlex.quote(name)} --list --yaml >hosts.yaml"
        raise UsageError(f"{name} is {kind}, which only Ansible can read", hint)
    found = importers.from_ansible(_foreign_text(path), path.name)
    unread = [folder for folder in ("group_vars", "host_vars") if (path.parent / folder).is_dir()]
    found.notes += [f"the folder {folder}/ was not read" for folder in unread]
    return found


def _foreign_text(path: Path) -> str:
    try:
        return _text(path)
    except InventoryError as error:
        if not path.exists():
            raise FileMissing(f"{path}: no such file") from error
        raise


def _from_ssh_config(session: Session, pattern: str) -> Imported:
    from sshgrid.inventory import importers

    path = Path(session.environ.get("SSHGRID_SSH_CONFIG", "~/.ssh/config")).expanduser()
    return importers.from_ssh_config(_with_includes(path), pattern)


def _with_includes(first: Path) -> Iterator[str]:
    """Yield the text of the file and of the files it includes; missing ones are skipped, as ssh does."""
    from sshgrid.inventory import importers

    waiting, seen = [first], set[Path]()
    while waiting and len(seen) < MAX_INCLUDES:
        path = waiting.pop(0)
        if path in seen or (path != first and not path.is_file()):
            continue
        seen.add(path)
        text = _foreign_text(path)
        yield text
        patterns = [value for key, values in importers.ssh_config_lines(text) if key == "include" for value in values]
        for pattern in patterns:
            waiting += map(Path, sorted(glob.glob(str(Path("~/.ssh").expanduser() / Path(pattern).expanduser()))))
