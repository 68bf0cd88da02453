"""`python -m tests.lab`: a lab in the foreground for people, and `python -m tests.lab ctl h1 power-off` to trouble it.

Prints the path of a ready inventory as its first line (`sshgrid -i THAT run ...`), then takes the same commands on
stdin and on a socket beside the inventory. Ends with `quit`, SIGINT or SIGTERM, and then takes everything away.
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
Ask: TypeAlias = tuple[list[str], Callable[[str], None]]

COMMANDS: dict[str, tuple[str, Command]] = {
    "power-off": ("pull the plug", lambda host, _: host.power_off()),
    "power-on": ("boot; the disk is as it was", lambda host, _: host.power_on()),
    "cut": ("cut the wire, silently", lambda host, _: host.cut()),
    "reset-connections": ("answer with TCP resets until healed", lambda host, _: host.reset_connections()),
    "lose": ("PERCENT of the packets until healed", lambda host, words: host.lose(int(words[0]))),
    "heal": ("join the wire", lambda host, _: host.heal()),
    "reset-sessions": ("break every SSH connection", lambda host, _: host.reset_sessions()),
    "stop-server": ("kill the SSH listener", lambda host, _: host.stop_server()),
    "start-server": ("start it again", lambda host, _: host.start_server()),
    "freeze": ("stop every process", lambda host, _: host.freeze()),
    "thaw": ("let them go on", lambda host, _: host.thaw()),
    "load": ("LOAD1 BUSY_CORES", lambda host, words: host.set_load(float(words[0]), float(words[1]))),
    "shell": ("login shell: bash dash csh fish mksh nologin", lambda host, words: host.set_shell(words[0])),
    "bashrc": ("TEXT of ~/.bashrc", lambda host, words: host.set_bashrc(" ".join(words) + "\n")),
    "hide": ("TOOL...: they are not there any more", lambda host, words: host.hide(*words)),
    "small-disk": ("BYTES: reboot with an empty small /var/tmp", lambda host, words: host.small_disk(int(words[0]))),
    "fill-disk": ("fill a small disk", lambda host, _: host.fill_disk()),
    "free-disk": ("free it again", lambda host, _: host.free_disk()),
    "new-host-key": ("come back with another host key", lambda host, _: host.new_host_key()),
    "processes": ("what runs besides the SSH server", lambda host, _: _table(host)),
    "leftovers": ("run directories on the disk", lambda host, _: "\n".join(host.leftovers())),
    "run": ("ARGV...: as root, without SSH", lambda host, words: host.run(words, check=False).stdout.rstrip("\n")),
    "reset": ("everything as on the first day", lambda host, _: host.reset()),
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
    """Hold a lab until it is told to end."""
    asked: queue.SimpleQueue[Ask] = queue.SimpleQueue()

    def end(_signal: int, _frame: FrameType | None) -> None:
        asked.put((["quit"], _say))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with Lab(hosts, busybox) as lab, socket.socket(socket.AF_UNIX) as listener:
        inventory = lab.directory / "inventory.yaml"
        inventory.write_text(lab.inventory_yaml())
        inventory.chmod(0o600)
        listener.bind(str(lab.directory / "control"))
        listener.listen()
        for listen in (lambda: _listen_stdin(asked), lambda: _listen_socket(listener, asked)):
            threading.Thread(target=listen, daemon=True).start()
        print(inventory, flush=True)  # noqa: T201
        _say(f"lab of {', '.join(lab.hosts)} is up; `help` lists the commands, `quit` or Ctrl-C ends it")
        _obey(lab, asked)
    return 0


def control(words: list[str]) -> int:
    """Give one command to the lab that runs on this machine (or the one of $SSHGRID_LAB, a path of an inventory)."""
    chosen = os.environ.get("SSHGRID_LAB")
    labs = [Path(chosen).parent / "control"] if chosen else [path for path in ROOT.glob("*/control") if _answers(path)]
    if len(labs) != 1:
        _say(f"error: {len(labs)} labs are running here")
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
    """Obey one command; the text to show, ending with a newline unless it is empty."""
    match words:
        case [] | ["help"]:
            rows = [f"HOST {name:<15} {what}\n" for name, (what, _) in COMMANDS.items()]
            return "".join(("status\nquit\n", *rows))
        case ["status"]:
            return "".join(f"{host.name}  {host.address}  {'on' if host.is_on else 'off'}\n" for host in lab)
        case [name, verb, *rest] if name in lab.hosts and verb in COMMANDS:
            try:
                said = COMMANDS[verb][1](lab[name], rest)
            except (LabError, ValueError, IndexError) as error:
                return f"error: {name} {verb}: {error}\n"
            return f"{said}\n" if said else ""
        case _:
            return f"error: not a command: {shlex.join(words)} (hosts: {', '.join(lab.hosts)}; see help)\n"


def _obey(lab: Lab, asked: queue.SimpleQueue[Ask]) -> None:
    while True:
        words, reply = asked.get()
        if words == ["quit"]:
            reply("")
            return
        reply(answer(lab, words))


def _listen_stdin(asked: queue.SimpleQueue[Ask]) -> None:
    # End of input is not the end of the lab: it may run in the background with stdin closed.
    for line in sys.stdin:
        asked.put((_split(line), _show))


def _listen_socket(listener: socket.socket, asked: queue.SimpleQueue[Ask]) -> None:
    # The listener is closed when the lab ends.
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection.makefile("r") as stream:
                line = stream.readline()
            asked.put((_split(line), lambda text, connection=connection: _reply(connection, text)))  # type: ignore[misc]


def _reply(connection: socket.socket, text: str) -> None:
    # Who asked may have gone.
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
    parser.add_argument("words", nargs=argparse.REMAINDER, help="ctl COMMAND..: give a command to the running lab")
    return parser


if __name__ == "__main__":
    sys.exit(main())
