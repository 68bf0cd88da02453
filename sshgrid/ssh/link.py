"""A node over one SSH connection: first contact, then the parts by which the connection is used.

Three channels last as long as the link, however many runs there are: a control shell that answers requests, a starter
shell that starts runs and reports on them, and a sampler that sends a load sample a second. SFTP and single scripts
need further ones. Every failure is a HostError; after one of the control shell the connection is lost and is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.errors import HostError, NodeUnfit
from sshgrid.model import Facts, Node, Sample
from sshgrid.ssh.builds import BuildVerbs
from sshgrid.ssh.channels import RemoteShell
from sshgrid.ssh.commands import Commands
from sshgrid.ssh.connect import Dialing, blame_in_use, dial, end
from sshgrid.ssh.control import Control
from sshgrid.ssh.library import LOAD, contact_script, install_script
from sshgrid.ssh.maintenance import Maintenance
from sshgrid.ssh.parsers import Found, LoadMeter, parse_contact
from sshgrid.ssh.runs import RunVerbs
from sshgrid.ssh.starter import StarterShell
from sshgrid.ssh.transfer import Transfer


class Link:
    """One connection to one node, made by `Link.open`."""

    def __init__(self, control: Control, starter: StarterShell, dialing: Dialing) -> None:
        self.control = control
        self.runs = RunVerbs(control, starter)
        self.builds = BuildVerbs(control)
        self.commands = Commands(control)
        self.maintenance = Maintenance(control, self.commands)
        self.transfer = Transfer(control, self.commands, dialing)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls,
        node: Node,
        dialing: Dialing,
        tools: Iterable[str],
        on_sample: Callable[[Sample], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> Link:
        """Dial the node, make first contact, and open the lasting channels. Raises HostError; nothing stays open then.

        `tools` are the names of commands to search for. `on_sample` is called with each load sample.
        """
        connection = await dial(node, dialing)
        try:
            with blame_in_use(node):
                # All at the same time: a shell takes a while to start.
                shell, starter_shell, sampler = await asyncio.gather(
                    RemoteShell.open(node, connection),
                    RemoteShell.open(node, connection),
                    RemoteShell.open(node, connection),
                )
                _, output = await shell.request(contact_script(node, tools))
                control = Control(node, connection, shell, parse_contact(node.name, output))
                await _install(control)
                starter = StarterShell(control, starter_shell)
                link = cls(control, starter, dialing)
                sampler.write(control.variables() + LOAD + b"sample_load\n")
                samples = _read_samples(control, sampler, on_sample, clock)
                link._tasks = [asyncio.create_task(starter.listen()), asyncio.create_task(samples)]
                return link
        except BaseException:
            await end(connection)
            raise

    @property
    def node(self) -> Node:
        return self.control.node

    @property
    def found(self) -> Found:
        """What first contact has found."""
        return self.control.found

    @property
    def facts(self) -> Facts:
        return self.control.facts

    @property
    def lost(self) -> asyncio.Future[HostError]:
        """Done once the connection cannot be used any more; its result is the reason."""
        return self.control.lost

    async def close(self, error: HostError | None = None) -> None:
        """Close the connection. `error` is the reason that its users get."""
        for task in self._tasks:
            task.cancel()
        await self.control.close(error)


async def _install(control: Control) -> None:
    """Write the shell functions to the node, and load them in the control shell."""
    status, output = await control.shell.request(control.variables() + install_script())
    if status != 0:
        words = output[-80:].decode(errors="replace")
        raise NodeUnfit(control.node.name, f"cannot write in {control.facts.workdir}: {words}")


async def _read_samples(
    control: Control, sampler: RemoteShell, on_sample: Callable[[Sample], None], clock: Clock
) -> None:
    """Pass load samples to `on_sample` until the connection is lost."""
    meter = LoadMeter(control.facts.cores)

    def on_line(line: bytes) -> None:
        if sample := meter.read(line, clock.wall()):
            on_sample(sample)

    with control.lost_at_end():
        await sampler.feed_lines(on_line)
