"""`python -m tests.lab` runs a lab in the foreground; `python -m tests.lab ctl h1 power-off` sends it a command.

The first line of output is the path of an inventory (`sshgrid -i PATH run ...`). Commands are also read from stdin and
from a socket beside the inventory. `quit`, SIGINT or SIGTERM ends the lab and removes it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from tests.lab import machine
from tests.lab.hosts import ROOT, Lab, LabError, LabHost

Command: TypeAlias = Callable[[LabHost, list[str]], str | None]
Order: TypeAlias = tuple[list[str], Callable[[str], None]]

COMMANDS: dict[str, tuple[str, Command]] = {
    "power-off": ("power off at once", lambda host, _: host.power_off()),
    "power-on": ("boot; the disk is kept", lambda host, _: host.power_on()),
    "cut": ("drop all packets silently", lambda host, _: host.cut()),
    "reset-connections": ("answer with TCP resets until heal", lambda host, _: host.reset_connections()),
    "lose": ("PERCENT: drop this share of packets until heal", lambda host, words: host.lose(int(words[0]))),
    "heal": ("end cut, lose and reset-connections", lambda host, _: host.heal()),
    "reset-sessions": ("end every SSH connection", lambda host, _: host.reset_sessions()),
    "stop-server": ("stop the SSH listener", lambda host, _: host.stop_server()),
    "start-server": ("start the SSH listener", lambda host, _: host.start_server()),
    "freeze": ("stop every process", lambda host, _: host.freeze()),
    "thaw": ("continue every process", lambda host, _: host.thaw()),
    "load": ("LOAD1 BUSY_CORES", lambda host, words: host.set_load(float(words[0]), float(words[1]))),
    "shell": ("login shell: bash dash csh fish mksh nologin", lambda host, words: host.set_shell(words[0])),
    "bashrc": ("TEXT: write it into ~/.bashrc", lambda host, words: host.set_bashrc(" ".join(words) + "\n")),
    "hide": ("TOOL...: remove these commands", lambda host, words: host.hide(*words)),
    "small-disk": ("BYTES: reboot with an empty small /var/tmp", lambda host, words: host.small_disk(int(words[0]))),
    "fill-disk": ("fill a small disk", lambda host, _: host.fill_disk()),
    "free-disk": ("remove what fill-disk wrote", lambda host, _: host.free_disk()),
    "new-host-key": ("reboot with another host key", lambda host, _: host.new_host_key()),
    "processes": ("list processes except the SSH server", lambda host, _: _table(host)),
    "leftovers": ("list the run folders on the disk", lambda host, _: "\n".join(host.leftovers())),
    "run": (
        "ARGV...: run a command as root, without SSH",
        lambda host, words: host.run(words, check=False).stdout.rstrip("\n"),
    ),
    "reset": ("return to the initial state", lambda host, _: host.reset()),
}


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.words[:1] == ["ctl"]:
        return control(arguments.words[1:])
    if arguments.words:
        _say(f"error: unknown command {arguments.words[0]}; did you mean: ctl {' '.join(arguments.words)}?")
        return 2
    if reason := machine.missing():
        _say(f"error: {reason}")
        return 125
    return serve(arguments.hosts, arguments.busybox)


def serve(hosts: int, busybox: int) -> int:
    """Run a lab until a `quit` command or a signal ends it."""
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def end(_signal: int, _frame: FrameType | None) -> None:
        orders.put((["quit"], _say))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with Lab(hosts, busybox) as lab, socket.socket(socket.AF_UNIX) as listener:
        inventory = lab.directory / "inventory.yaml"
        inventory.write_text(lab.inventory_yaml())
        inventory.chmod(0o600)
        listener.bind(str(lab.directory / "control"))
        listener.listen()
        for listen in (lambda: _listen_stdin(orders), lambda: _listen_socket(listener, orders)):
            threading.Thread(target=listen, daemon=True).start()
        print(inventory, flush=True)  # noqa: T201
        _say(f"lab of {', '.join(lab.hosts)} is up; `help` lists the commands, `quit` or Ctrl-C ends it")
        _execute_all(lab, orders)
    return 0


def control(words: list[str]) -> int:
    """Send one command to the lab on this machine, or to that of $SSHGRID_LAB, the path of an inventory."""
    chosen = os.environ.get("SSHGRID_LAB")
    labs = [Path(chosen).parent / "control"] if chosen else [path for path in ROOT.glob("*/control") if _answers(path)]
    if len(labs) != 1:
        _say(f"error: {len(labs)} labs are running on this machine")
        _say("hint: python -m tests.lab starts one; SSHGRID_LAB=INVENTORY chooses among several")
        return 1
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as stream:
        connection.connect(str(labs[0]))
        stream.write(shlex.join(words) + "\n")
        stream.flush()
        answer = stream.read()
    failed = answer.startswith("error:")
    (_say if failed else _show)(answer)
    return 1 if failed else 0


def answer(lab: Lab, words: list[str]) -> str:
    """Execute one command; returns the text to show, with a newline at its end unless it is empty."""
    match words:
        case [] | ["help"]:
            rows = [f"HOST {name:<15} {what}\n" for name, (what, _) in COMMANDS.items()]
            return "".join(("status\nquit\n", *rows))
        case ["status"]:
            return "".join(f"{host.name}  {host.address}  {'on' if host.is_on else 'off'}\n" for host in lab)
        case [name, verb, *rest] if name in lab.hosts and verb in COMMANDS:
            try:
                text = COMMANDS[verb][1](lab[name], rest)
            except (LabError, ValueError, IndexError) as error:
                return f"error: {name} {verb}: {error}\n"
            return f"{text}\n" if text else ""
        case _:
            return f"error: not a command: {shlex.join(words)} (hosts: {', '.join(lab.hosts)}; see help)\n"


def _execute_all(lab: Lab, orders: queue.SimpleQueue[Order]) -> None:
    while True:
        words, reply = orders.get()
        if words == ["quit"]:
            reply("")
            return
        reply(answer(lab, words))


def _listen_stdin(orders: queue.SimpleQueue[Order]) -> None:
    # The end of stdin does not end the lab: it may run in the background with stdin closed.
    for line in sys.stdin:
        orders.put((_split(line), _show))


def _listen_socket(listener: socket.socket, orders: queue.SimpleQueue[Order]) -> None:
    # The listener is closed when the lab ends.
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection.makefile("r") as stream:
                line = stream.readline()
            orders.put((_split(line), lambda text, connection=connection: _reply(connection, text)))  # type: ignore[misc]


def _reply(connection: socket.socket, text: str) -> None:
    # The client may have disconnected.
    with contextlib.suppress(OSError), connection:
        connection.sendall(text.encode())


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return [line.strip()]


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def _table(host: LabHost) -> str:
    return "\n".join(f"{process.pid:>6}  {shlex.join(process.argv)}" for process in host.processes())


def _show(text: str) -> None:
    print(text, end="", flush=True)  # noqa: T201


def _say(text: str) -> None:
    print(text.rstrip("\n"), file=sys.stderr, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--hosts", type=int, default=4, help="OpenSSH hosts h1.. (default 4)")
    parser.add_argument("--busybox", type=int, default=0, help="hosts b1.. with dropbear and busybox (default 0)")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="ctl COMMAND..: send a command to the running lab")
    return parser


if __name__ == "__main__":
    sys.exit(main())
