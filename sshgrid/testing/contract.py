"""The contract that every engine passes: what a master relies on, however the programs are run.

A check receives a Bench (an engine on a node, ready to run) and uses the contract's own programs. These are sh scripts,
each with an imitation in Python, so that an engine without processes passes the same checks. An engine is checked for
the parts that it offers. A broken promise is an AssertionError.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import Protocol, TypeAlias

import msgspec

from sshgrid import toolchains
from sshgrid.engines import AttemptResult, Batches, Engine, Keyboard
from sshgrid.engines.batch_state import BatchState
from sshgrid.engines.launch import BatchSpec, RunSpec, make_batch, place_in, run_name
from sshgrid.errors import HostError
from sshgrid.model import Attempt, Exited, Fetched, JobId, Outcome, Program, SourceFile, Step, Struct, Toolchain
from sshgrid.spool.spool import Spool
from sshgrid.testing.engine import Stage
from sshgrid.testing.grid import FACTS

DEADLINE_SECONDS = 30.0
GRID = "c0ffee00"
EVERY_BYTE = bytes(range(256))
AWKWARD = (b"", b"a b", b"$(id)", b"`id`", b"'\"", b"-n", b"\xff\xfe", b"line\nline", b"{dir}", "ü".encode(), b"*")
_SH = next(row for row in toolchains.LANGUAGES if row.name == "sh")
_TOOLS = Toolchain("sh", "", dict.fromkeys(toolchains.commands(_SH), "/bin/sh"), "contract")
_jobs = count(1)


class Bench(Protocol):
    """An engine with one node that works."""

    engine: Engine
    node: str
    spool: Spool

    async def left(self) -> Sequence[str]:
        """Return what is on the node of any run: folders, processes."""


MakeBench: TypeAlias = Callable[[], AbstractAsyncContextManager[Bench]]
Check: TypeAlias = Callable[[Bench], Awaitable[None]]


class Script(Struct, frozen=True):
    """A program of the contract, and its imitation in Python."""

    source: bytes
    imitation: Callable[[Stage], Awaitable[Outcome]]


class Notes:
    """A sink that keeps what it receives; `before` is the stdout that an earlier master kept."""

    def __init__(self, before: bytes = b"") -> None:
        self.streams = {"stdout": before, "stderr": b"", "compile": b""}
        self.files: Fetched | None = None
        self.wanted = True
        self.steps: list[Step] = []
        self.uploads = 0

    def kept(self, stream: str) -> int:
        return len(self.streams[stream])

    async def output(self, stream: str, piece: bytes) -> None:
        self.streams[stream] = self.streams.get(stream, b"") + piece

    async def step(self, step: Step) -> None:
        if self.steps[-1:] != [step]:
            self.steps.append(step)

    async def uploaded(self, count: int, left: int = 0) -> None:
        self.uploads += count

    async def compiled(self, compiled: bool) -> None:
        """The programs of the contract are not compiled."""

    def fetch_room(self) -> int:
        return 1 << 30 if self.wanted else 0

    async def restart_stream(self, stream: str) -> None:
        self.streams.pop(stream, None)

    async def fetched(self, fetched: Fetched) -> None:
        self.files = fetched

    async def until(self, words: bytes) -> None:
        """Wait until the program has printed these words."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while words not in self.streams["stdout"]:
            assert time.monotonic() < deadline, f"waited for {words!r}; printed: {self.streams}"
            await asyncio.sleep(0.005)


class BatchNotes:
    """A batch sink that keeps what it receives."""

    def __init__(self, batch: BatchSpec, *, resumed: bool = False) -> None:
        self.state = BatchState({task.run: task for task in batch.tasks}, resumed=resumed)
        self.sinks: dict[str, Notes] = {}
        self.results: dict[str, AttemptResult] = {}

    def of(self, run: str) -> Notes:
        return self.sinks.setdefault(run, Notes())

    def kept(self, run: str, stream: str) -> int:
        return self.of(run).kept(stream)

    async def output(self, run: str, stream: str, piece: bytes) -> None:
        await self.of(run).output(stream, piece)

    async def running(self, runs: Sequence[str]) -> None:
        for run in runs:
            await self.of(run).step(Step.RUNNING)

    async def ended(self, ends: Sequence[tuple[str, AttemptResult]]) -> None:
        for run, result in ends:
            assert run not in self.results, f"{run} ended twice"
            self.results[run] = result
            self.state.remove([run])

    async def uploaded(self, count: int, left: int = 0) -> None:
        """The checks do not count what is uploaded for a batch."""

    async def compiled(self, compiled: bool) -> None:
        """The programs of the contract are not compiled."""


def order(bench: Bench, script: Script, *args: bytes, stdin: bytes | None = None, interactive: bool = False) -> RunSpec:
    """Return a new attempt at one of the contract's programs."""
    attempt = Attempt(JobId(next(_jobs)), 1, bench.node)
    source = SourceFile("main.sh", bench.spool.blobs.keep(script.source), len(script.source))
    given = None if stdin is None else SourceFile("stdin", bench.spool.blobs.keep(stdin), len(stdin))
    program = Program("sh", "main.sh", (source,), args, stdin=given)
    recipe = toolchains.recipe(_SH, _TOOLS, program, script.source, FACTS)
    return RunSpec(attempt, run_name(GRID, attempt), program, recipe, interactive=interactive)


def batch_of(bench: Bench, script: Script, *args: bytes) -> BatchSpec:
    """Return a batch of one program, with a task for each argument."""
    return make_batch([order(bench, script, arg) for arg in args])


def batches(bench: Bench) -> Batches:
    assert bench.engine.batches is not None, "the engine has no batches"
    return bench.engine.batches


async def extend(bench: Bench, batch: BatchSpec, notes: BatchNotes, more: RunSpec) -> bool:
    notes.state.join({more.run: more})
    taken = await batches(bench).extend(batch.run, [more])
    if not taken:
        notes.state.remove([more.run])
    return taken


async def revoke(bench: Bench, batch: BatchSpec, notes: BatchNotes, *runs: str) -> list[str]:
    revoked = await batches(bench).revoke(batch.run, runs)
    notes.state.remove(revoked)
    return revoked


async def finish_batch(bench: Bench, batch: BatchSpec, notes: BatchNotes, *, resume: bool = False) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        await batches(bench).run(batch, notes, resume=resume)


async def finish(bench: Bench, what: RunSpec, notes: Notes, *, resume: bool = False) -> AttemptResult:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await bench.engine.runs.run(what, notes, resume=resume)


async def until_clean(bench: Bench) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while left := await bench.left():
        assert time.monotonic() < deadline, f"left on the node: {left}"
        await asyncio.sleep(0.02)


# --- the programs -----------------------------------------------------------------------------------------------------


async def _hello(stage: Stage) -> Outcome:
    await stage.say(b"hello\n")
    return Exited(0)


async def _args(stage: Stage) -> Outcome:
    await stage.say(b"".join(arg + b"\0" for arg in stage.args))
    return Exited(0)


async def _cat(stage: Stage) -> Outcome:
    if stage.keyboard is None:
        await stage.say(stage.stdin)
        return Exited(0)
    while (piece := await stage.keyboard.get()) != b"":
        await stage.say(piece if isinstance(piece, bytes) else b"")
    return Exited(0)


async def _exits(stage: Stage) -> Outcome:
    code = int(stage.args[0])
    return Exited(code if code >= 0 else 128 - code)


async def _counts(stage: Stage) -> Outcome:
    for number in range(int(stage.args[0])):
        await stage.say(b"out %d\n" % number)
        await stage.say(b"err %d\n" % number, "stderr")
    return Exited(0)


async def _waits(stage: Stage) -> Outcome:
    await stage.say(b"ready\n")
    while (name := await stage.signal()) != "TERM":
        await stage.say(b"heard %s\n" % name.encode())
    await stage.say(b"bye\n")
    return Exited(7)


async def _deaf(stage: Stage) -> Outcome:
    await stage.say(b"ready\n")
    while await stage.signal() != "KILL":
        pass
    return Exited(137)


async def _writes(stage: Stage) -> Outcome:
    stage.files |= {"out/a.csv": b"1,2\n", "out/b c/d.csv": b"", "note.txt": b"not asked for"}
    return Exited(int(stage.args[0]))


async def _task(stage: Stage) -> Outcome:
    await stage.say(b"task %s\n" % stage.args[0])
    if stage.args[0] != b"wait":
        return Exited(int(stage.args[0]))
    while await stage.signal() != "TERM":
        pass
    return Exited(7)


HELLO = Script(b"echo hello\n", _hello)
ARGS = Script(b"for word; do printf '%s\\0' \"$word\"; done\n", _args)
CAT = Script(b"cat\n", _cat)
EXITS = Script(b'[ "$1" -ge 0 ] || kill "$1" $$\nexit "$1"\n', _exits)
COUNTS = Script(b'i=0\nwhile [ "$i" -lt "$1" ]; do echo "out $i"; echo "err $i" >&2; i=$((i + 1)); done\n', _counts)
WAITS = Script(
    b"trap 'echo heard USR1' USR1\ntrap 'echo bye; exit 7' TERM\necho ready\nwhile :; do sleep 0.02; done\n", _waits
)
WRITES = Script(
    b'mkdir -p "out/b c"\necho 1,2 >out/a.csv\n: >"out/b c/d.csv"\nprintf "not asked for" >note.txt\nexit "$1"\n',
    _writes,
)
TASK = Script(
    b"""trap 'exit 7' TERM\necho "task $1"\n[ "$1" = wait ] || exit "$1"\nwhile :; do sleep 0.02; done\n""", _task
)
DEAF = Script(b"trap '' INT TERM HUP\necho ready\nwhile :; do sleep 0.02; done\n", _deaf)

IMITATIONS = {
    hashlib.sha256(script.source).hexdigest(): script.imitation
    for script in (HELLO, ARGS, CAT, EXITS, COUNTS, WAITS, DEAF, WRITES, TASK)
}


async def imitate(stage: Stage) -> Outcome:
    """A play for ScriptedEngine: imitates any program of the contract."""
    return await IMITATIONS[stage.order.program.files[0].sha256](stage)


# --- the checks -------------------------------------------------------------------------------------------------------


async def returns_the_output_of_a_program(bench: Bench) -> None:
    notes = Notes()
    what = order(bench, HELLO)
    assert (await finish(bench, what, notes)).outcome == Exited(0)
    assert notes.streams == {"stdout": b"hello\n", "stderr": b"", "compile": b""}


async def passes_arguments_exactly(bench: Bench) -> None:
    notes = Notes()
    assert (await finish(bench, order(bench, ARGS, *AWKWARD), notes)).outcome == Exited(0)
    assert notes.streams["stdout"] == b"".join(arg + b"\0" for arg in AWKWARD)


async def passes_standard_input_exactly(bench: Bench) -> None:
    for stdin in (b"", b"no newline at the end", EVERY_BYTE * 2000):
        notes = Notes()
        assert (await finish(bench, order(bench, CAT, stdin=stdin), notes)).outcome == Exited(0)
        assert notes.streams["stdout"] == stdin


async def has_empty_standard_input_when_none_is_given(bench: Bench) -> None:
    notes = Notes()
    assert (await finish(bench, order(bench, CAT), notes)).outcome == Exited(0)
    assert notes.streams["stdout"] == b""


async def returns_the_exit_code_of_the_program(bench: Bench) -> None:
    for code in (0, 1, 3, 124, 125, 126, 127, 255):
        outcome = (await finish(bench, order(bench, EXITS, b"%d" % code), Notes())).outcome
        assert outcome == Exited(code), f"{code} came back as {outcome}"


async def returns_the_signal_that_ended_the_program(bench: Bench) -> None:
    for number in (2, 9, 15):
        outcome = (await finish(bench, order(bench, EXITS, b"-%d" % number), Notes())).outcome
        assert outcome == Exited(128 + number), f"signal {number} came back as {outcome}"


async def keeps_the_output_of_each_stream_in_order(bench: Bench) -> None:
    notes = Notes()
    await finish(bench, order(bench, COUNTS, b"2000"), notes)
    assert notes.streams["stdout"] == b"".join(b"out %d\n" % number for number in range(2000))
    assert notes.streams["stderr"] == b"".join(b"err %d\n" % number for number in range(2000))


async def fetches_the_requested_files_for_any_exit_code(bench: Bench) -> None:
    for code in (0, 3):
        notes, what = Notes(), order(bench, WRITES, b"%d" % code)
        wanted = msgspec.structs.replace(what.program, fetch=("**/*.csv", "nothing.*"))
        outcome = (await finish(bench, msgspec.structs.replace(what, program=wanted), notes)).outcome
        assert outcome == Exited(code)
        with tarfile.open(fileobj=io.BytesIO(notes.streams["files"])) as archive:
            found = {each.name: each.size for each in archive.getmembers()}
        assert found == {"./out/a.csv": 4, "./out/b c/d.csv": 0}, found
        assert notes.files is not None
        assert (notes.files.files, notes.files.size, len(notes.files.warnings)) == (2, 4, 1), notes.files


async def fetches_nothing_when_the_sink_has_no_room(bench: Bench) -> None:
    notes, what = Notes(), order(bench, WRITES, b"0")
    notes.wanted = False
    wanted = msgspec.structs.replace(what.program, fetch=("out",))
    assert (await finish(bench, msgspec.structs.replace(what, program=wanted), notes)).outcome == Exited(0)
    assert notes.streams.get("files", b"") == b""


async def sends_signals(bench: Bench) -> None:
    what, notes = order(bench, WAITS), Notes()
    running = asyncio.create_task(finish(bench, what, notes))
    await notes.until(b"ready\n")
    assert await bench.engine.runs.signal(what.run, "USR1")
    await notes.until(b"heard USR1\n")
    assert await bench.engine.runs.signal(what.run, "TERM")
    assert (await running).outcome == Exited(7)
    assert notes.streams["stdout"] == b"ready\nheard USR1\nbye\n"
    assert Step.RUNNING in notes.steps, notes.steps


async def kills_a_program_that_ignores_other_signals(bench: Bench) -> None:
    what, notes = order(bench, DEAF), Notes()
    running = asyncio.create_task(finish(bench, what, notes))
    await notes.until(b"ready\n")
    assert await bench.engine.runs.signal(what.run, "TERM")
    assert await bench.engine.runs.signal(what.run, "KILL")
    assert (await running).outcome == Exited(137)


async def does_not_signal_an_unknown_run(bench: Bench) -> None:
    what = order(bench, HELLO)
    assert not await bench.engine.runs.signal(what.run, "TERM")
    await bench.engine.runs.discard(what.run)


async def refuses_a_run_before_it_begins_and_not_after(bench: Bench) -> None:
    refused, notes = order(bench, HELLO), Notes()
    assert await bench.engine.runs.refuse(refused.run)
    try:
        outcome: object = (await finish(bench, refused, notes)).outcome
    except HostError as error:
        outcome = error
    assert isinstance(outcome, HostError), f"a refused run ended as {outcome}"
    assert notes.streams["stdout"] == b""
    begun, notes = order(bench, HELLO), Notes()
    await finish(bench, begun, notes)
    assert not await bench.engine.runs.refuse(begun.run)
    await bench.engine.runs.discard(refused.run)


async def finds_a_finished_run_again(bench: Bench) -> None:
    what, notes = order(bench, COUNTS, b"50"), Notes()
    first = await finish(bench, what, notes)
    for before in (b"", notes.streams["stdout"][:100], notes.streams["stdout"]):
        again = Notes(before)
        second = await finish(bench, what, again, resume=True)
        assert (second.outcome, again.streams["stdout"]) == (first.outcome, notes.streams["stdout"])


async def follows_a_run_again_after_a_restart(bench: Bench) -> None:
    what, notes = order(bench, WAITS), Notes()
    watching = asyncio.create_task(bench.engine.runs.run(what, notes))
    await notes.until(b"ready\n")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    again = Notes(notes.streams["stdout"])
    running = asyncio.create_task(finish(bench, what, again, resume=True))
    await asyncio.sleep(0)
    assert await bench.engine.runs.signal(what.run, "USR1")
    await again.until(b"heard USR1\n")
    assert await bench.engine.runs.signal(what.run, "TERM")
    assert (await running).outcome == Exited(7)
    assert again.streams["stdout"] == b"ready\nheard USR1\nbye\n"


async def never_starts_a_run_that_is_resumed(bench: Bench) -> None:
    what, notes = order(bench, HELLO), Notes()
    for resume in (True, False):  # and after that it is too late to begin it
        try:
            outcome: object = (await finish(bench, what, notes, resume=resume)).outcome
        except HostError as error:
            outcome = error
        assert isinstance(outcome, HostError), f"a run that never was ended as {outcome}"
    assert notes.streams["stdout"] == b""


async def keeps_concurrent_runs_apart(bench: Bench) -> None:
    async def one(number: int) -> None:
        notes = Notes()
        outcome = (await finish(bench, order(bench, ARGS, b"%d" % number), notes)).outcome
        assert (outcome, notes.streams["stdout"]) == (Exited(0), b"%d\0" % number)

    await asyncio.gather(*(one(number) for number in range(12)))


async def converses_with_an_interactive_run(bench: Bench) -> None:
    assert bench.engine.conversations is not None, "the engine has no conversations"
    what, notes = order(bench, CAT, interactive=True), Notes()
    keyboard: Keyboard = asyncio.Queue()
    async with asyncio.timeout(DEADLINE_SECONDS):
        running = asyncio.create_task(bench.engine.conversations.converse(what, notes, keyboard))
        await keyboard.put(b"hi\n")
        await notes.until(b"hi\n")
        await keyboard.put(b"")
        assert (await running).outcome == Exited(0)
    assert notes.streams["stdout"] == b"hi\n"


async def leaves_nothing_of_a_discarded_run(bench: Bench) -> None:
    ended, running, notes = order(bench, HELLO), order(bench, DEAF), Notes()
    await finish(bench, ended, Notes())
    watching = asyncio.create_task(bench.engine.runs.run(running, notes))
    await notes.until(b"ready\n")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert len(await bench.left()) >= 2
    for what in (ended, running):
        await bench.engine.runs.discard(what.run)
        await bench.engine.runs.discard(what.run)  # asking twice is fine
    await until_clean(bench)


async def returns_the_result_of_each_task_of_a_batch(bench: Bench) -> None:
    batch = batch_of(bench, TASK, *(b"%d" % code for code in range(5)))
    notes = BatchNotes(batch)
    await finish_batch(bench, batch, notes)
    assert [notes.results[task.run].outcome for task in batch.tasks] == [Exited(code) for code in range(5)]
    printed = [notes.of(task.run).streams["stdout"] for task in batch.tasks]
    assert printed == [b"task %d\n" % code for code in range(5)]


async def extends_a_running_batch_and_revokes_tasks_that_have_not_begun(bench: Bench) -> None:
    batch = batch_of(bench, TASK, b"wait", b"0")
    notes = BatchNotes(batch)
    waiting, revoked = batch.tasks
    more = order(bench, TASK, b"3")
    assert not await extend(bench, batch, notes, more), "extended before it was started"
    running = asyncio.create_task(finish_batch(bench, batch, notes))
    await notes.of(waiting.run).until(b"task wait\n")
    assert await extend(bench, batch, notes, more)
    assert await revoke(bench, batch, notes, waiting.run, revoked.run) == [revoked.run]
    assert await revoke(bench, batch, notes, revoked.run) == []
    assert await bench.engine.runs.signal(place_in(batch.run, waiting.run), "TERM")
    await running
    assert {run: result.outcome for run, result in notes.results.items()} == {
        waiting.run: Exited(7),
        more.run: Exited(3),
    }
    assert not await extend(bench, batch, notes, order(bench, TASK, b"0")), "extended after its end"


async def finds_a_batch_again(bench: Bench) -> None:
    batch = batch_of(bench, TASK, b"wait")
    notes, again = BatchNotes(batch), BatchNotes(batch, resumed=True)
    watching = asyncio.create_task(batches(bench).run(batch, notes))
    await notes.of(batch.tasks[0].run).until(b"task wait\n")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    running = asyncio.create_task(finish_batch(bench, batch, again, resume=True))
    await asyncio.sleep(0)
    assert not await extend(bench, batch, again, order(bench, TASK, b"0")), "extended after a restart"
    assert await bench.engine.runs.signal(place_in(batch.run, batch.tasks[0].run), "TERM")
    await running
    assert again.results[batch.tasks[0].run].outcome == Exited(7)
    assert again.of(batch.tasks[0].run).streams["stdout"] == b"task wait\n"


async def leaves_nothing_of_a_batch_that_is_discarded(bench: Bench) -> None:
    batch = batch_of(bench, TASK, b"wait", b"0")
    notes = BatchNotes(batch)
    watching = asyncio.create_task(batches(bench).run(batch, notes))
    await notes.of(batch.tasks[0].run).until(b"task wait\n")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert await bench.left()
    await bench.engine.runs.discard(batch.run)
    await until_clean(bench)


RUN_CHECKS: tuple[Check, ...] = (
    returns_the_output_of_a_program,
    passes_arguments_exactly,
    passes_standard_input_exactly,
    has_empty_standard_input_when_none_is_given,
    returns_the_exit_code_of_the_program,
    returns_the_signal_that_ended_the_program,
    keeps_the_output_of_each_stream_in_order,
    fetches_the_requested_files_for_any_exit_code,
    fetches_nothing_when_the_sink_has_no_room,
    sends_signals,
    kills_a_program_that_ignores_other_signals,
    does_not_signal_an_unknown_run,
    refuses_a_run_before_it_begins_and_not_after,
    finds_a_finished_run_again,
    follows_a_run_again_after_a_restart,
    never_starts_a_run_that_is_resumed,
    keeps_concurrent_runs_apart,
    leaves_nothing_of_a_discarded_run,
)
BATCH_CHECKS: tuple[Check, ...] = (
    returns_the_result_of_each_task_of_a_batch,
    extends_a_running_batch_and_revokes_tasks_that_have_not_begun,
    finds_a_batch_again,
    leaves_nothing_of_a_batch_that_is_discarded,
)
CONVERSATION_CHECKS: tuple[Check, ...] = (converses_with_an_interactive_run,)
CHECKS = RUN_CHECKS + BATCH_CHECKS + CONVERSATION_CHECKS


def checks_of(engine: Engine) -> tuple[Check, ...]:
    """Return the checks of the parts that an engine offers."""
    batch_checks = () if engine.batches is None else BATCH_CHECKS
    conversation_checks = () if engine.conversations is None else CONVERSATION_CHECKS
    return RUN_CHECKS + batch_checks + conversation_checks


async def check_engine(make_bench: MakeBench) -> None:
    """Run every check of the parts that the engine offers, each on a new bench. Raises AssertionError."""
    async with make_bench() as bench:
        checks = checks_of(bench.engine)
    for check in checks:
        async with make_bench() as bench:
            await check(bench)
