"""The bytes of the protocol: each message encoded and decoded, split anywhere; other bytes are an error."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sshgrid import errors
from sshgrid.errors import SshgridError, UsageError
from sshgrid.model import (
    Account,
    Caps,
    JobId,
    NodeState,
    OnDisconnect,
    Program,
    Role,
    SourceFile,
    Submission,
    Toolchain,
    UserKey,
)
from sshgrid.protocol import codec, messages, sweep_messages, user_messages
from sshgrid.protocol.codec import Decoder
from sshgrid.protocol.messages import Message

Said = tuple[Message, bytes]

PROGRAM = Program("sh", "a.sh", (SourceFile("a.sh", "0" * 64, 3),), (b"\xff\0", b""), (("A", b"\xfe"),))
LINE = messages.JobLine(
    JobId(1), "ann", "a.sh 'x y'", "", "RUNNING", "running", "n1", 1, 3, 0.1, 0.2, 1e-9, None, None, "", None,
    (messages.AttemptLine(1, "n1", "", 0.1, None, 3, None, None, None),), (messages.NodeReason("n2", "\u2028 ünï"),),
)  # fmt: skip
NODE = messages.NodeLine("n1", NodeState.IDLE, "", 0.5, None, 1 << 40, 0, None, ("c",), None)

TASK = sweep_messages.TaskLine(17, "FAILED", "h1", 2, 1.0, 2.5, 3, None, "exit code 3", 0.25, 1 << 20, 5, 6, 7)
USER = user_messages.UserLine(
    "ann", Role.USER, False, True, 0.5, (UserKey("SHA256:x", "ssh-ed25519 AAAA"),), Caps(1), 0, 2
)

EXAMPLES: list[Said] = [
    (messages.Hello("0.1"), b""),
    (messages.PutBlob("0" * 64, 5, last=True), b"a\nb\0c"),
    (messages.PutBlob("0" * 64, 0, last=True), b""),
    (messages.MissingBlobs(("0" * 64,)), b""),
    (messages.Submit(Submission(PROGRAM, "a.sh"), "key\n"), b""),
    (messages.Watch(JobId(7), on_disconnect=OnDisconnect.CANCEL), b""),
    (messages.Logs(JobId(7), tail_lines=3), b""),
    (messages.Cancel((JobId(1), JobId(2)), "INT"), b""),
    (messages.Input(4), b'{"}\n'),
    (messages.Resize(80, 24), b""),
    (messages.Jobs("1-3", states=("PENDING",), since_seconds=0.5), b""),
    (messages.Info(JobId(1)), b""),
    (messages.Remove((JobId(1),)), b""),
    (messages.Hold((), release=True), b""),
    (messages.Nodes(history=True), b""),
    (messages.CheckNodes("@lab"), b""),
    (messages.Diagnose("@lab"), b""),
    (messages.Execute("@lab", (b"printf", b"\xff"), 2.5), b""),
    (messages.Explain(Submission(PROGRAM, "a.sh")), b""),
    (messages.Toolchains(), b""),
    (messages.Status(), b""),
    (messages.Clients(), b""),
    (messages.Reload(), b""),
    (messages.Backup("/tmp/it is"), b""),
    (messages.Stop(drain=True), b""),
    (sweep_messages.WatchSweep(JobId(42), "1-40,45", keep_order=True), b""),
    (sweep_messages.ProgressOf(JobId(42)), b""),
    (sweep_messages.Tasks(JobId(42), ("FAILED",)), b""),
    (sweep_messages.Retry((JobId(42), JobId(-44040209)), failed=True), b""),
    (sweep_messages.SweepProgress(JobId(42), 10, 4, 1, 2, 4, 0, 1.5, 4.0, TASK), b""),
    (sweep_messages.TaskOutput(17, "stdout", 5), b"hello"),
    (sweep_messages.TaskEnded(TASK), b""),
    (sweep_messages.TasksReply((TASK,)), b""),
    (user_messages.Users(), b""),
    (user_messages.AddUser("ann", Role.ADMIN, ("ssh-ed25519 AAAA",)), b""),
    (user_messages.RemoveUser("ann"), b""),
    (user_messages.DisableUser("ann", disabled=False), b""),
    (user_messages.SetPassword("ann", "correct horse"), b""),
    (user_messages.AddKey("ann", "ssh-ed25519 AAAA"), b""),
    (user_messages.RemoveKey("ann", "SHA256:x"), b""),
    (user_messages.SetCaps("ann", Caps(running=3)), b""),
    (user_messages.UsersReply((USER,)), b""),
    (messages.Welcome("0.1", 42), b""),
    (messages.Failure("usage", 'a "quoted"\nmessage', "hint", 2), b""),
    (messages.Done(3), b""),
    (messages.MissingBlobsReply(()), b""),
    (messages.Accepted(JobId(1)), b""),
    (messages.JobsReply((LINE,)), b""),
    (messages.NodesReply((NODE,)), b""),
    (messages.DiagnoseReply((messages.NodeFindings("n1", (messages.Finding("clock", False, "9 s", "ntp"),)),)), b""),
    (
        messages.ExecuteReply(
            (messages.ExecuteLine("n1", 0, 0, 0.5), messages.ExecuteLine("n2", None, 0, 0.5)), (b"\xff\n",)
        ),
        b"",
    ),
    (messages.ExplainReply("n1", (("n1", 0.25),), ()), b""),
    (messages.ToolchainsReply((messages.ToolchainLine("c", ("*.c",), (("n1", Toolchain("c", "12", {}, "f")),)),)), b""),
    (messages.StatusReply(1, "0.1", "/s", "/d", "/i", "", 1.5, 2, {"RUNNING": 1}, 1), b""),
    (messages.ClientsReply((messages.ClientLine("ann", "local", 0.1, 2, 1, 1),)), b""),
    (messages.Output("stdout", 1, 256), bytes(range(256))),
    (messages.Progress(1, 3, "n1", "running"), b""),
    (messages.TakeFile("/a", 1, 2, 3, 4, 5), b""),
    (messages.TakeFileReply("0" * 64), b""),
    (messages.Waiting("Resources", (messages.NodeReason("n1", "full"),)), b""),
    (messages.Notice("h2 lost"), b""),
    (messages.Restarted("stdout", 2), b""),
    (messages.Ended(LINE), b""),
]


def bytes_of(said: Iterable[Said]) -> bytes:
    return b"".join(codec.encode(message, payload) for message, payload in said)


def kinds(union: object) -> set[type]:
    parts = typing.get_args(union)
    return set().union(*(kinds(part) for part in parts)) if parts else {typing.cast("type", union)}


def test_every_kind_of_message_has_an_example_here() -> None:
    assert kinds(messages.Message) - {type(message) for message, _ in EXAMPLES} == set()


@pytest.mark.parametrize(("message", "payload"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_decoded_message_equals_the_encoded_one(message: Message, payload: bytes) -> None:
    assert list(Decoder().feed(codec.encode(message, payload))) == [(message, payload)]


@pytest.mark.parametrize(("message", "payload"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_message_is_one_line_before_its_payload(message: Message, payload: bytes) -> None:
    encoded = codec.encode(message, payload)
    assert encoded.index(b"\n") == len(encoded) - len(payload) - 1


@given(said=st.lists(st.sampled_from(EXAMPLES), max_size=6), cuts=st.lists(st.integers(0, 3000), max_size=12))
def test_a_stream_can_be_split_anywhere(said: list[Said], cuts: list[int]) -> None:
    stream, decoder, got, at = bytes_of(said), Decoder(), list[Said](), 0
    for cut in (*sorted(cuts), len(stream)):
        got += decoder.feed(stream[at:cut])
        at = max(at, cut)
    assert got == said


def test_a_stream_can_arrive_byte_by_byte() -> None:
    stream, decoder = bytes_of(EXAMPLES), Decoder()
    got = [said for at in range(len(stream)) for said in decoder.feed(stream[at : at + 1])]
    assert got == EXAMPLES


@given(payload=st.binary(max_size=2000))
@example(b'{"type":"status"}\n')
def test_a_payload_is_never_decoded_as_a_message(payload: bytes) -> None:
    said: list[Said] = [(messages.Output("stdout", 1, len(payload)), payload), (messages.Status(), b"")]
    assert list(Decoder().feed(bytes_of(said))) == said


def test_the_largest_payload_and_the_longest_line_are_accepted() -> None:
    payload = bytes(messages.MAX_PAYLOAD)
    assert list(Decoder().feed(codec.encode(messages.Input(len(payload)), payload))) == [
        (messages.Input(len(payload)), payload)
    ]
    notice = messages.Notice("x" * (codec.MAX_LINE - 100))
    assert list(Decoder().feed(codec.encode(notice))) == [(notice, b"")]


@pytest.mark.parametrize("size", [-1, messages.MAX_PAYLOAD + 1, 1 << 62, -(1 << 62)])
def test_A33_a_payload_of_invalid_size_is_refused_before_it_arrives(size: int) -> None:
    line = msgspec.json.encode({"type": "input", "size": size}) + b"\n"
    with pytest.raises(UsageError, match="payload"):
        list(Decoder().feed(line))


def test_A33_a_line_without_end_is_refused() -> None:
    decoder, piece = Decoder(), b"x" * 65536
    for _ in range(codec.MAX_LINE // len(piece)):
        assert list(decoder.feed(piece)) == []
    with pytest.raises(UsageError, match="longer than"):
        list(decoder.feed(piece))


def test_a_long_line_in_small_pieces_takes_linear_time() -> None:
    class Counting(bytearray):
        looked = 0

        def find(self, sub: object, start: int = 0, *rest: object) -> int:  # type: ignore[override]
            Counting.looked += len(self) - start
            return super().find(b"\n", start)

    decoder = Decoder()
    decoder._buffer = Counting()
    for _ in range(1000):
        assert list(decoder.feed(b"x" * 100)) == []
    assert Counting.looked < 1_000_000


def test_a_payload_of_another_size_than_announced_is_an_error() -> None:
    for message in (messages.Input(3), messages.Output("stdout", 1, 3), messages.PutBlob("0" * 64, 3, last=False)):
        with pytest.raises(ValueError, match="announced as 3"):
            codec.encode(message, b"four")


HOSTILE = [
    b"",
    b"\0",
    b"\xff\xfe\x00",
    b"GET / HTTP/1.1",
    b"SSH-2.0-OpenSSH_9.2",
    b"null",
    b"[]",
    b"{}",
    b'"status"',
    b'{"type":"nonsense"}',
    b'{"type":17}',
    b'{"type":"hello","version":"\x80"}',
    b'{"type":"watch"}',
    b'{"type":"watch","job":"1"}',
    b'{"type":"watch","job":1.5}',
    b'{"type":"watch","job":1,"more":2}',
    b'{"type":"watch","job":1' + b"0" * 5000 + b"}",
    b'{"type":"watch","job":NaN}',
    b'{"type":"hello","version":"\\ud800"}',
    b'{"type":"input","size":1e400}',
    b'{"type":"status"} {"type":"status"}',
    b'{"type":"submit","submission":{}}',
    b'{"type":"submit","key":"k","submission":{"command":"","program":{"language":"","entry":"","files":[1]}}}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"x":' + b"[" * 100_000,
    b'{"type":"submit","submission":{"program":{"files":' + b"[" * 50_000,
]


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: repr(line[:40]))
def test_A2_A33_bytes_that_are_not_the_protocol_are_a_usage_error_in_one_line(line: bytes) -> None:
    with pytest.raises(UsageError) as refused:
        list(Decoder().feed(line + b"\n"))
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 500


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_usage_error(junk: bytes) -> None:
    decoder = Decoder()
    try:
        for message, _ in decoder.feed(junk + b"\n"):
            assert isinstance(message, tuple(kinds(messages.Message)))
    except UsageError:
        pass


@given(st.sampled_from(EXAMPLES), st.integers(0, 400), st.integers(0, 255))
def test_a_message_with_one_byte_changed_is_a_message_or_a_usage_error(said: Said, at: int, byte: int) -> None:
    encoded = bytearray(codec.encode(*said))
    encoded[at % len(encoded)] = byte
    with contextlib.suppress(UsageError):
        list(Decoder().feed(bytes(encoded)))


def errors_of(kind: type[SshgridError]) -> set[type[SshgridError]]:
    return {kind}.union(*(errors_of(child) for child in kind.__subclasses__() if child.__module__ == errors.__name__))


@pytest.mark.parametrize("kind", sorted(errors_of(SshgridError), key=str))
def test_every_error_can_be_sent_and_keeps_its_text(kind: type[SshgridError]) -> None:
    error = kind("n1", "words", "hint") if issubclass(kind, errors.HostError) else kind("words", "hint")
    told = codec.failure(error)
    assert list(Decoder().feed(codec.encode(told))) == [(told, b"")]
    assert (told.code, told.hint, told.exit_status) == (kind.code, "hint", kind.exit_status)
    assert "words" in told.message


def test_a_message_is_decoded_wherever_its_type_is() -> None:
    lines = b'{"size":2,"type":"input"}\nhi{ "type": "accepted", "job": 7 }\n{"type":"accepted","job":8}\n'
    assert list(Decoder().feed(lines)) == [
        (messages.Input(2), b"hi"),
        (messages.Accepted(JobId(7)), b""),
        (messages.Accepted(JobId(8)), b""),
    ]


def test_a_password_is_in_no_repr() -> None:
    assert "horse" not in repr(user_messages.SetPassword("ann", "correct horse"))
    assert "argon" not in repr(Account("ann", Role.USER, 0.0, password="$argon2id$..."))


def test_a_status_reply_of_another_version_is_decoded() -> None:
    """A client reads the status of a master of any version before it stops it. Protocol 1 had the field `door`."""
    line = (
        b'{"type":"status-reply","pid":1,"version":"0.0.1","socket":"","state_dir":"","inventory":"",'
        b'"inventory_error":"","uptime_seconds":1.0,"nodes":0,"jobs_by_state":{"COMPLETED":2},"clients":1,"door":""}\n'
    )
    ((reply, payload),) = Decoder().feed(line)
    assert isinstance(reply, messages.StatusReply)
    assert (reply.jobs_by_state, payload) == ({"COMPLETED": 2}, b"")
