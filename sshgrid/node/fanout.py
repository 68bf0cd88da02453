"""One question to many nodes at once, over the master's connections: a person's command, or what is wrong there.

Alike outputs are kept once, and all together stay below what one reply may hold. Refuses to wait longer for a node than
the command's own limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from sshgrid.errors import Dropped, HostError, UsageError
from sshgrid.node import diagnosis
from sshgrid.node.managed_node import ManagedNode
from sshgrid.protocol.codec import MAX_LINE
from sshgrid.protocol.messages import Execute, ExecuteLine, ExecuteReply, Finding, NodeFindings

AT_ONCE = 64
MOST_SECONDS = 24 * 3600.0
# Base64 takes a third more, and the lines need room as well.
OUTPUT_BYTES = MAX_LINE * 5 // 8
MOST_BYTES = 256 * 1024  # of one node


def refuse_unfit(request: Execute) -> None:
    """UsageError when no node could run this."""
    if not request.words or not request.words[0]:
        raise UsageError("no command was given", "sshgrid node exec SEL -- COMMAND")
    if any(b"\0" in word for word in request.words):
        raise UsageError("a word of a command cannot hold a NUL")
    if not 0 < request.limit_seconds <= MOST_SECONDS:
        raise UsageError(f"a time limit is above 0 and at most {MOST_SECONDS / 3600:g}h", "--time-limit 60s")


async def execute(nodes: Sequence[ManagedNode], request: Execute) -> ExecuteReply:
    """Every node's answer, in the order of `members`."""
    turn = asyncio.Semaphore(AT_ONCE)
    most_bytes = min(MOST_BYTES, OUTPUT_BYTES // max(1, len(nodes)))
    outputs: dict[bytes, int] = {}

    async def ask(node: ManagedNode) -> ExecuteLine:
        async with turn:
            started = time.monotonic()
            try:
                status, more, output, reason = await _executed(node, request, most_bytes)
            except HostError as error:
                status, more, output, reason = None, False, b"", error.reason
            number = outputs.setdefault(output, len(outputs))
            return ExecuteLine(node.name, status, number, time.monotonic() - started, more, reason)

    lines = await asyncio.gather(*map(ask, nodes))
    return ExecuteReply(tuple(lines), tuple(outputs))


async def _executed(node: ManagedNode, request: Execute, most_bytes: int) -> tuple[int | None, bool, bytes, str]:
    if node.link is None:
        raise Dropped(node.name, node.reason or "not connected")
    spoken = await node.link.execute(request.words, request.limit_seconds, most_bytes)
    status, _, late = spoken.answer.partition(" ")
    reason = f"ended by the time limit of {request.limit_seconds:g} s" if late else ""
    return (int(status) if status.isdigit() else None), spoken.more, spoken.output, reason


# --- what is wrong ----------------------------------------------------------------------------------------------------


async def diagnose(nodes: Sequence[ManagedNode]) -> tuple[NodeFindings, ...]:
    """What was found on each, in the order of `members`."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def look(node: ManagedNode) -> NodeFindings:
        async with turn:
            try:
                return NodeFindings(node.name, await _looked_at(node))
            except HostError as error:
                return NodeFindings(node.name, (diagnosis.unreachable(error),))

    return tuple(await asyncio.gather(*map(look, nodes)))


async def _looked_at(node: ManagedNode) -> tuple[Finding, ...]:
    link = node.link
    if link is None:
        raise Dropped(node.name, node.reason or "not connected")
    began = time.time()
    facts = diagnosis.read(await link.diagnose())
    took = time.time() - began
    said = facts.get("clock", [""])[0]
    ahead = float(said) - (began + took / 2) if said.isdigit() else 0.0
    by_sshd = node.config.connection != "local"
    whom = link.whom if by_sshd else "this machine, without sshd"
    found = [Finding("connection", True, whom), *diagnosis.findings(facts, ahead, took / 2 + 1, by_sshd=by_sshd)]
    if await link.has_sftp():
        return (*found, Finding("SFTP", True, "works"))
    slow = "does not work; uploads go through cat, which is slower"
    return (*found, Finding("SFTP", True, slow, "Subsystem sftp internal-sftp, in its sshd_config"))
