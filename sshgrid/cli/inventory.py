"""`inventory`: show, check and edit the inventory file.

Large modules (pydantic, yaml) are imported inside the functions. A file that would not be valid is not written.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sshgrid.cli.base import Verbs, pass_session
from sshgrid.client.inventory_change import load
from sshgrid.client.session import Session
from sshgrid.errors import InventoryError, UsageError

if TYPE_CHECKING:
    pass


# --- inventory -------------------------------------------------------------------------------------------------------


@click.group("inventory", cls=Verbs)
def inventory_group() -> None:
    """Check and show inventory.yaml."""


@inventory_group.command()
@pass_session
def check(session: Session) -> int:
    """Read the inventory and say everything that is wrong with it. Exit 1 when something is."""
    try:
        found = load(session.places())
    except InventoryError as error:
        error.exit_status = 1  # that was the question; elsewhere it is why nothing could be done
        raise
    session.show(
        lambda: {"schema": 1, "path": found.path, "valid": True, "nodes": len(found.nodes), "digest": found.digest},
        lambda: f"{found.path}: {len(found.nodes)} node{'s' * (len(found.nodes) != 1)}, no errors\n",
    )
    return 0


@inventory_group.command("show")
@pass_session
def show_inventory(session: Session) -> int:
    """Print what is in force: ranges expanded, defaults merged."""
    from sshgrid import inventory

    found = load(session.places())
    session.show(lambda: inventory.show(found), lambda: inventory.show_yaml(found))
    return 0


@inventory_group.command()
@pass_session
def path(session: Session) -> int:
    """Print which file is used."""
    places = session.places(must_exist=False)
    session.show(
        lambda: {"schema": 1, "path": places.inventory, "source": places.inventory_source},
        lambda: f"{places.inventory}\n",
    )
    return 0


@inventory_group.command()
@pass_session
def schema(session: Session) -> int:
    """Print the JSON Schema of the file, for editors."""
    import json

    from sshgrid import inventory

    found = inventory.json_schema()
    session.show(lambda: found, lambda: json.dumps(found, indent=2) + "\n")
    return 0


@inventory_group.command()
@pass_session
def edit(session: Session) -> int:
    """Open the file in $VISUAL or $EDITOR; it is replaced once what you left is valid.

    With errors you are asked whether to go on editing. When the file was changed meanwhile, yours is kept beside it.
    """
    from sshgrid.cli import inventory_edit

    return inventory_edit.edit(session)


@inventory_group.command("import")
@click.option("--ansible", metavar="F", help="An inventory of Ansible's, INI or YAML: groups become tags.")
@click.option(
    "--ssh-config", metavar="[PATTERN]", is_flag=False, flag_value="*", help="The Host aliases that PATTERN fits (all)."
)
@click.option("--dry-run", is_flag=True, help="Only print the lines that would be added.")
@pass_session
def take(session: Session, ansible: str | None, ssh_config: str | None, dry_run: bool) -> int:
    """Add the hosts of another tool's file, and say what of it has no place here."""
    from sshgrid.cli import inventory_edit

    if (ansible is None) == (ssh_config is None):
        raise UsageError("say what to import: one of --ansible F and --ssh-config", "sshgrid inventory import --help")
    return inventory_edit.take(session, ansible, ssh_config, dry_run=dry_run)


# --- what all edits share --------------------------------------------------------------------------------------------
