"""`inventory`: show, check and edit the inventory file.

Large modules (pydantic, yaml) are imported inside the functions. A file that would not be valid is not written.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import click

from sshgrid.cli.base import Verbs, pass_session
from sshgrid.client.inventory_change import load
from sshgrid.client.session import Session
from sshgrid.errors import InventoryError, UsageError


@click.group("inventory", cls=Verbs)
def inventory_group() -> None:
    """Show, check and edit the inventory file."""


@inventory_group.command()
@pass_session
def check(session: Session) -> int:
    """Read the inventory and print all of its errors. Exits with 1 if there are any."""
    try:
        found = load(session.places())
    except InventoryError as error:
        error.exit_status = 1  # the result of the check; for other commands it is a failure (125)
        raise
    session.show(
        lambda: {"schema": 1, "path": found.path, "valid": True, "nodes": len(found.nodes), "digest": found.digest},
        lambda: f"{found.path}: {len(found.nodes)} node{'s' * (len(found.nodes) != 1)}, no errors\n",
    )
    return 0


@inventory_group.command("show")
@pass_session
def show_inventory(session: Session) -> int:
    """Print the inventory with expanded ranges and merged defaults."""
    from sshgrid import inventory

    found = load(session.places())
    session.show(lambda: inventory.show(found), lambda: inventory.show_yaml(found))
    return 0


@inventory_group.command()
@pass_session
def path(session: Session) -> int:
    """Print the path of the inventory."""
    places = session.places(must_exist=False)
    session.show(
        lambda: {"schema": 1, "path": places.inventory, "source": places.inventory_source},
        lambda: f"{places.inventory}\n",
    )
    return 0


@inventory_group.command()
@pass_session
def schema(session: Session) -> int:
    """Print the JSON Schema of the inventory, for editors."""
    import json

    from sshgrid import inventory

    found = inventory.json_schema()
    session.show(lambda: found, lambda: json.dumps(found, indent=2) + "\n")
    return 0


@inventory_group.command()
@pass_session
def edit(session: Session) -> int:
    """Edit the inventory in $VISUAL or $EDITOR.

    It is replaced if the new text is valid. After errors you can edit again. If the inventory changed meanwhile, your
    text is saved beside it.
    """
    from sshgrid.cli import inventory_edit

    return inventory_edit.edit(session)


@inventory_group.command("import")
@click.option("--ansible", metavar="F", help="Import from an inventory of Ansible, INI or YAML: groups become tags.")
@click.option(
    "--ssh-config",
    metavar="[PATTERN]",
    is_flag=False,
    flag_value="*",
    help="Import the Host aliases that match PATTERN (default: all).",
)
@click.option("--dry-run", is_flag=True, help="Print the lines that would be added, and change nothing.")
@pass_session
def import_hosts(session: Session, ansible: str | None, ssh_config: str | None, dry_run: bool) -> int:
    """Add hosts from the files of other tools.

    Prints what cannot be imported.
    """
    from sshgrid.cli import inventory_edit

    if (ansible is None) == (ssh_config is None):
        raise UsageError("expected one of --ansible F and --ssh-config", "sshgrid inventory import --help")
    return inventory_edit.import_hosts(session, ansible, ssh_config, dry_run=dry_run)
