"""A scripted master: a Unix-socket server in a thread that answers requests as the test says.

It records the requests. A request that has no scripted answer gets one that reports success.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from sshgrid.model import JobId, NodeState, Toolchain
from sshgrid.paths import Places, private_dir
from sshgrid.protocol import codec, messages
from sshgrid.protocol.messages import JobLine, Message, NodeLine
from sshgrid.version import VERSION

Reply: TypeAlias = Message | tuple[Message, bytes] | float  # a float closes the connection
Script: TypeAlias = Callable[[Message], Iterable[Reply]]

DEADLINE_SECONDS = 10.0


def job_line(number: int = 42, **changes: object) -> JobLine:
    values: dict[str, object] = {
        "id": JobId(number),
        "user": "ann",
        "program": "Primes.java 1000",
        "name": "",
        "state": "COMPLETED",
        "phase": "",
        "node": "h2",
        "attempt": 1,
        "attempts_allowed": 3,
        "submitted": 1_700_000_000.25,
        "started": 1_700_000_001.5,
        "seconds": 2.5,
        "exit_code": 0,
        "signal": None,
        "reason": "",
        "exit_status": 0,
    }
    return JobLine(**{**values, **changes})  # type: ignore[arg-type]


def node_line(name: str = "h2", **changes: object) -> NodeLine:
    values: dict[str, object] = {
        "name": name,
        "state": NodeState.IDLE,
        "reason": "",
        "cpu": 0.25,
        "load": 0.5,
        "memory_free": 4 << 30,
        "running": 0,
        "slots": 4,
        "toolchains": ("c", "python"),
        "last_seen": 1_700_000_000.0,
    }
    return NodeLine(**{**values, **changes})  # type: ignore[arg-type]


def output(stream: str, piece: bytes, attempt: int = 1) -> tuple[Message, bytes]:
    return messages.Output(stream, attempt, len(piece)), piece


CLOSE = 0.0  # as the last reply: the master closes the connection


class FakeMaster:
    """Listens on the socket of these places until `close`."""

    def __init__(self, places: Places, version: str = VERSION) -> None:
        self.places, self.version = places, version
        self.requests: list[tuple[Message, bytes]] = []
        self.scripts: dict[type[Message], Script] = {}
        self.refuses: messages.Failure | None = None
        private_dir(places.state_dir)
        private_dir(str(Path(places.socket).parent))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(places.socket)
        self._listener.listen(16)
        self._connections: list[socket.socket] = []
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def reply(self, kind: type[Message], *replies: Reply) -> None:
        """Send these replies to every request of this kind."""
        self.scripts[kind] = lambda _: replies

    def reply_in_turn(self, kind: type[Message], *turns: Iterable[Reply]) -> None:
        """Reply to the first such request with the first turn, and so on; the last turn repeats."""
        left = list(turns)
        self.scripts[kind] = lambda _: left.pop(0) if len(left) > 1 else left[0]

    def received(self, kind: type[Message]) -> list[Message]:
        with self._changed:
            return [message for message, _ in self.requests if isinstance(message, kind)]

    def payload(self, kind: type[Message]) -> bytes:
        with self._changed:
            return b"".join(piece for message, piece in self.requests if isinstance(message, kind))

    def wait_for(self, kind: type[Message], count: int = 1) -> None:
        """Wait for such a request."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._changed:
            while len([each for each, _ in self.requests if isinstance(each, kind)]) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"no {kind.__name__}; requests were {self.requests}"
                self._changed.wait(left)

    def send(self, *messages: Reply) -> None:
        """Send messages to the newest connection."""
        self._send(self._connections[-1], messages)

    def drop(self) -> None:
        """Close every connection, as a master that is killed."""
        for connection in self._connections:
            _shut(connection)

    def close(self) -> None:
        _shut(self._listener)
        Path(self.places.socket).unlink(missing_ok=True)
        self.drop()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)

    def __enter__(self) -> FakeMaster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the server

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        decoder = codec.Decoder()
        try:
            while piece := connection.recv(1 << 16):
                for message, payload in decoder.feed(piece):
                    with self._changed:
                        self.requests.append((message, payload))
                        self._changed.notify_all()
                    self._send(connection, self._reply_to(message))
        except OSError:
            return
        finally:
            _shut(connection)

    def _reply_to(self, message: Message) -> Iterable[Reply]:
        if script := self.scripts.get(type(message)):
            return script(message)
        return self._default_reply(message)

    def _default_reply(self, message: Message) -> Iterator[Reply]:  # noqa: C901 - a table with a line for each request
        match message:
            case messages.Hello():
                yield self.refuses or messages.Welcome(self.version, 4242)
            case messages.MissingBlobs(sha256=digests):
                yield messages.MissingBlobsReply(digests)
            case messages.TakeFile():
                yield messages.Failure("usage", "this master reads no files")
            case messages.Submit():
                yield messages.Accepted(JobId(42))
            case messages.Watch(job=job) | messages.Logs(job=job):
                yield messages.Ended(job_line(job))
            case messages.Jobs(selector=selector):
                yield messages.JobsReply((job_line(int(selector)) if selector.isdigit() else job_line(),))
            case messages.Info(job=job):
                yield messages.JobsReply((job_line(job),))
            case messages.Nodes() | messages.CheckNodes():
                yield messages.NodesReply((node_line(),))
            case messages.Diagnose():
                yield messages.DiagnoseReply(())
            case messages.Execute():
                yield messages.ExecuteReply((messages.ExecuteLine("h2", 0, 0, 0.5),), (b"output\n",))
            case messages.Toolchains():
                java = Toolchain("java", "17.0.15", {"javac": "/usr/bin/javac"}, "f00d")
                yield messages.ToolchainsReply((messages.ToolchainLine("java", ("*.java",), (("h2", java),)),))
            case messages.Status():
                yield status_reply(self.places, self.version)
            case messages.Cancel(jobs=jobs) | messages.Remove(jobs=jobs) | messages.Hold(jobs=jobs):
                yield messages.Done(len(jobs))
            case messages.Reload():
                yield messages.Done()
            case messages.Stop():
                # Before the reply: a client that gets it may start the next master, which creates a socket here.
                _shut(self._listener)
                Path(self.places.socket).unlink(missing_ok=True)
                yield messages.Done()

    def _send(self, connection: socket.socket, replies: Iterable[Reply]) -> None:
        for reply in replies:
            match reply:
                case float():
                    _shut(connection)
                case (message, payload):
                    connection.sendall(codec.encode(message, payload))
                case _:
                    connection.sendall(codec.encode(reply))


def status_reply(places: Places, version: str = VERSION, **jobs: int) -> messages.StatusReply:
    return messages.StatusReply(4242, version, places.socket, places.state_dir, places.inventory, "", 1.5, 1, jobs, 1)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        sock.close()
