"""`node exec`: run one command on many nodes, and print equal outputs once, as `clush -b` does.

The exit status is 0 only when the command ended with status 0 on every node.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sshgrid.client.session import Session, write_or_leave
from sshgrid.errors import SshgridError

if TYPE_CHECKING:
    from sshgrid.protocol.messages import ExecuteLine, ExecuteReply

_RULE = "-" * 15


class CommandFailed(SshgridError):
    """The command did not end with status 0 on every node."""

    code = "command-failed"
    exit_status = 1


def execute(session: Session, selector: str, argv: Sequence[str], limit_seconds: float) -> int:
    """Run the command and print its output. CommandFailed names each node where it did not end with status 0."""
    from sshgrid.protocol.messages import Execute, ExecuteReply

    request = Execute(selector, tuple(map(os.fsencode, argv)), limit_seconds)
    with session.connect() as connection:
        reply = connection.request(request, ExecuteReply)
    if session.json:
        session.show(lambda: _object(argv, reply), str)
        return int(any(line.status != 0 for line in reply.lines))
    write_or_leave(_write, _text(reply))
    notes = _notes(reply.lines)
    if failed := [note for status, note in notes if status != 0]:
        raise CommandFailed("\n".join(failed), "")
    for _, note in notes:
        session.warn(note)
    return 0


def _write(text: str) -> None:
    from sshgrid.terminal.render import write_out

    write_out(text)


def grouped(lines: Iterable[ExecuteLine]) -> list[list[ExecuteLine]]:
    """Group lines with equal output and status, the largest group first, then in the order of the inventory."""
    groups: dict[tuple[int, int | None], list[ExecuteLine]] = {}
    for line in lines:
        groups.setdefault((line.output, line.status), []).append(line)
    return sorted(groups.values(), key=len, reverse=True)


def _text(reply: ExecuteReply) -> str:
    return "".join(_block(group, reply.outputs[group[0].output]) for group in grouped(reply.lines))


def _block(group: Sequence[ExecuteLine], output: bytes) -> str:
    if not output:
        return ""
    status = group[0].status
    count = f" ({len(group)})" if len(group) > 1 else ""
    ended = "" if status == 0 else f": exit {status}"
    text = output.decode("utf-8", "surrogateescape")
    return f"{_RULE}\n{_names(group)}{count}{ended}\n{_RULE}\n{text}" + "\n" * (not text.endswith("\n"))


def _names(lines: Iterable[ExecuteLine]) -> str:
    from sshgrid.notation.selectors import fold

    return fold(line.node for line in lines)


def _notes(lines: Iterable[ExecuteLine]) -> list[tuple[int | None, str]]:
    """Messages about nodes besides their output: (status, text), equal ones once."""
    groups: dict[tuple[int | None, str], list[ExecuteLine]] = {}
    for line in lines:
        ended = f"exit {line.status}" if line.status else ""
        cut = "the output was cut" if line.truncated else ""
        if text := "; ".join(filter(None, (ended, line.reason, cut))):
            groups.setdefault((line.status, text), []).append(line)
    return [(status, f"{_names(group)}: {text}") for (status, text), group in groups.items()]


# --- JSON ------------------------------------------------------------------------------------------------------------


def _object(argv: Sequence[str], reply: ExecuteReply) -> dict[str, object]:
    return {
        "schema": 1,
        "command": [each.encode("utf-8", "replace").decode() for each in argv],
        "nodes": [_node_object(line, reply.outputs[line.output]) for line in reply.lines],
        "groups": [_group_object(group) for group in grouped(reply.lines)],
        "ok": all(line.status == 0 for line in reply.lines),
    }


def _node_object(line: ExecuteLine, output: bytes) -> dict[str, object]:
    return {
        "schema": 1,
        "node": line.node,
        "exit_status": line.status,
        **_output(output),
        "truncated": line.truncated,
        "seconds": line.seconds,
        "reason": line.reason,
    }


def _output(output: bytes) -> dict[str, str]:
    try:
        return {"output": output.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(output).decode("ascii")}


def _group_object(group: Sequence[ExecuteLine]) -> dict[str, object]:
    status = group[0].status
    return {"schema": 1, "nodes": _names(group), "count": len(group), "exit_status": status}
