"""One request to many nodes at once over the master's connections: a user's command, or a diagnosis.

Equal outputs are returned once, and all outputs together stay below the limit of one reply. A node is waited for no
longer than the command's own time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sshgrid.clock import Clock
from sshgrid.errors import Dropped, HostError, UsageError
from sshgrid.node import diagnosis
from sshgrid.node.managed_node import ManagedNode
from sshgrid.protocol.codec import MAX_LINE
from sshgrid.protocol.messages import Execute, ExecuteLine, ExecuteReply, Finding, NodeFindings
from sshgrid.ssh.link import Link

AT_ONCE = 64  # nodes
MOST_SECONDS = 24 * 3600.0
# Base64 makes the output a third longer, and the lines need room as well.
OUTPUT_BYTES = MAX_LINE * 5 // 8
MOST_BYTES = 256 * 1024  # of one node


def check_request(request: Execute) -> None:
    """Raise UsageError when no node can run this."""
    if not request.words or not request.words[0]:
        raise UsageError("no command was given", "sshgrid node exec SEL -- COMMAND")
    if any(b"\0" in word for word in request.words):
        raise UsageError("a word of a command cannot hold a NUL")
    if not 0 < request.limit_seconds <= MOST_SECONDS:
        raise UsageError(f"a time limit is above 0 and at most {MOST_SECONDS / 3600:g}h", "--time-limit 60s")


async def execute(nodes: Sequence[ManagedNode], request: Execute, clock: Clock) -> ExecuteReply:
    """Run a command on these nodes. Return a line for each, in their order."""
    at_once = asyncio.Semaphore(AT_ONCE)
    most_bytes = min(MOST_BYTES, OUTPUT_BYTES // max(1, len(nodes)))
    outputs: dict[bytes, int] = {}

    async def run(node: ManagedNode) -> ExecuteLine:
        async with at_once:
            started = clock.monotonic()
            try:
                status, more, output, reason = await _executed(node, request, most_bytes)
            except HostError as error:
                status, more, output, reason = None, False, b"", error.reason
            number = outputs.setdefault(output, len(outputs))
            return ExecuteLine(node.name, status, number, clock.monotonic() - started, more, reason)

    lines = await asyncio.gather(*map(run, nodes))
    return ExecuteReply(tuple(lines), tuple(outputs))


async def _executed(node: ManagedNode, request: Execute, most_bytes: int) -> tuple[int | None, bool, bytes, str]:
    """Return the exit status, whether the output was cut, the output, and a reason when the time limit ended it."""
    found = await _link(node).commands.execute(request.words, request.limit_seconds, most_bytes)
    status, _, late = found.answer.partition(" ")
    reason = f"ended by the time limit of {request.limit_seconds:g} s" if late else ""
    return (int(status) if status.isdigit() else None), found.more, found.output, reason


def _link(node: ManagedNode) -> Link:
    """Return the live connection; unlike `connected`, do not wait for it. Raises Dropped."""
    if node.connection.link is None:
        raise Dropped(node.name, node.connection.reason or "not connected")
    return node.connection.link


# --- diagnosis --------------------------------------------------------------------------------------------------------


async def diagnose(nodes: Sequence[ManagedNode], clock: Clock) -> tuple[NodeFindings, ...]:
    """Diagnose these nodes. Return the findings of each, in their order."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def look(node: ManagedNode) -> NodeFindings:
        async with at_once:
            try:
                return NodeFindings(node.name, await _findings(node, clock))
            except HostError as error:
                return NodeFindings(node.name, (diagnosis.unreachable(error),))

    return tuple(await asyncio.gather(*map(look, nodes)))


async def _findings(node: ManagedNode, clock: Clock) -> tuple[Finding, ...]:
    link = _link(node)
    started = clock.wall()
    facts = diagnosis.read(await link.maintenance.diagnose())
    took = clock.wall() - started
    node_time = facts.get("clock", [""])[0]
    ahead = float(node_time) - (started + took / 2) if node_time.isdigit() else 0.0
    by_sshd = node.config.connection != "local"
    server = link.maintenance.server if by_sshd else "this machine, without sshd"
    found = [Finding("connection", True, server), *diagnosis.findings(facts, ahead, took / 2 + 1, by_sshd=by_sshd)]
    if await link.maintenance.has_sftp():
        return (*found, Finding("SFTP", True, "works"))
    slow = "does not work; uploads go through cat, which is slower"
    return (*found, Finding("SFTP", True, slow, "Subsystem sftp internal-sftp, in its sshd_config"))
