"""One node as it is now: its connection, kept up, with its load, its toolchains and its health.

A member dials its node whenever its breaker allows, notices silence by the missing load sample, and dials anew at once.
Toolchains count only after a hello of theirs ran on the node; the proof is kept there. Time is the monotonic clock: a
wall clock that jumps must not make a node silent. Refuses to decide where jobs go.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sshgrid import toolchains
from sshgrid.engines import Engine
from sshgrid.engines.table import DEFAULT_ENGINE, ENGINES
from sshgrid.errors import Dropped, HostError, NodeUnfit
from sshgrid.model import Facts, Language, Node, Sample, Struct, Toolchain
from sshgrid.node.shared import Shared
from sshgrid.node.toolchain_check import CheckRecord, SmokeTest, ToolchainChecker, check_records
from sshgrid.policy.breaker import DIAL_MAX_SECONDS, Breaker, Quarantine
from sshgrid.policy.placement import NodeView
from sshgrid.policy.retry import patience
from sshgrid.ssh.hedged_dial import Spare, first_of_two
from sshgrid.ssh.link import Link

log = logging.getLogger(__name__)

WAITED_FOR_SECONDS = 1.0  # between two dials of a silent node whose runs are waited for
STRAYS_AGAIN_SECONDS = 20.0  # longer than the guard of a start
SUSPECT_SECONDS = 2.0  # without a load sample for so long, a node with runs is dialled beside
SILENCE_SECONDS = 5.0  # without a load sample for so long, the connection is given up and dialled anew
TIDY_SECONDS = 5.0  # how often a node is asked whether there is something to clean, when nothing is known of
QUIET_SECONDS = 3.0  # toolchains that nobody asked for are tested after the node has been up for so long
RETEST_SECONDS = 30.0
# What lies on a node: nothing older, and not more.
SWEEP_DAYS = 14
SWEEP_BYTES = 10 << 30
FIRST_SWEEP_SECONDS = 60.0  # not while somebody waits for a first run
SWEEP_SECONDS = 6 * 3600.0


class Share(Struct, frozen=True):
    """What a run has of its node."""

    slots: int = 1
    gpus: tuple[int, ...] = ()


ONE_SLOT = Share()


class ManagedNode:
    """One node, kept connected for as long as `keep` runs."""

    def __init__(self, config: Node, shared: Shared) -> None:
        self.config = config
        self.name = config.name
        self.running: dict[str, Share] = {}  # by run name: what was given to it and has not ended
        self.leftovers: set[str] = set()  # runs that could not be cleaned while it was away
        self.claims: set[str] = set()  # run folders that stand against a start which may still be on its way
        self.reason = ""  # why it is not up; "" while it is, or before the first dial
        self.tried = False
        self.facts: Facts | None = None
        self.sample: Sample | None = None
        self.busy_minute: deque[float] = deque(maxlen=60)  # cores, a second each
        self.toolchains: Mapping[str, Toolchain] = {}  # replaced, never changed: views hold it
        self.untested: frozenset[str] = frozenset()
        self.problems: dict[str, str] = {}
        self.engine: Engine = ENGINES[DEFAULT_ENGINE](
            self, shared.spool.blobs.path, lambda worked: patience(shared.retry, worked), shared.builds
        )
        self._shared = shared
        self._link: Link | None = None
        self._breaker = Breaker()
        self.quarantine = Quarantine()
        self._wanted: list[str] = []
        self._wake = asyncio.Event()  # dial now; test now
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._waiters: set[asyncio.Future[None]] = set()
        self._heard_at = time.monotonic()  # the last sign of life
        self._uptime = (0.0, self._heard_at)  # the node's own clock, and when it said so

    # --- what placement sees

    def view(self) -> NodeView:
        now = time.monotonic()
        slot_limit = self.quarantine.slot_limit(now)
        since = self._heard_at if self.sample else 0.0
        return NodeView(
            node=self.config,
            slot_limit=slot_limit if self.up else None,
            up=self.up and slot_limit != 0,
            reason=self.reason or ("" if slot_limit != 0 else "quarantined after losing several runs"),
            facts=self.facts,
            toolchains=self.toolchains,
            untested=self.untested,
            sample=self.sample,
            running=sum(share.slots for share in self.running.values()),
            gpus_in_use=frozenset(number for share in self.running.values() for number in share.gpus),
            started_since_sample=_count_since(since, self._starts),
            ended_since_sample=_count_since(since, self._ends),
            next_try_seconds=None if self.up or not self.tried else max(0.0, self._breaker.next_try - now),
        )

    @property
    def up(self) -> bool:
        return self._link is not None and not self._link.lost.done()

    @property
    def link(self) -> Link | None:
        """The connection as it is; None while there is none."""
        return self._link if self.up else None

    @property
    def undecided(self) -> bool:
        """The first dial has not ended, or the first load sample has not come."""
        return not self.tried or (self.up and self.sample is None)

    def begun(self, run: str, share: Share = ONE_SLOT) -> None:
        self.running[run] = share
        self._starts = [*self._starts[-63:], *[time.monotonic()] * share.slots]

    def ended(self, run: str) -> None:
        if share := self.running.pop(run, None):
            self._ends = [*self._ends[-63:], *[time.monotonic()] * share.slots]

    def let_go(self, run: str) -> None:
        """It is about to end: its slot may be given to another one already."""
        self.ended(run)
        self.running[run] = Share(0)

    def lost_a_run(self) -> None:
        """A program that ran here was lost with the node."""
        self.quarantine = self.quarantine.run_lost(time.monotonic())

    # --- the engine's Host

    async def connected(self, patience_seconds: float) -> Link:
        """The live connection. Raises Dropped when patience ends, counted from the node's last sign of life.

        When every node is silent the fault is ours: nobody's patience ends then. Without patience it raises at once.
        """
        while True:
            if self._link is not None and not self._link.lost.done():
                return self._link
            silent = self.silent_seconds()
            if silent >= patience_seconds and not (patience_seconds and self._shared.all_silent):
                raise Dropped(
                    self.name, f"no answer for {silent:.0f} s" if silent >= 1 else self.reason or "not connected"
                )
            await self._changed(min(max(0.05, patience_seconds - silent), 1.0))

    def silent_seconds(self) -> float:
        return time.monotonic() - self._heard_at

    @property
    def last_seen(self) -> float:
        """Its last sign of life, as the wall clock shows it."""
        return time.time() - self.silent_seconds()

    def uptime_now(self) -> float:
        """The node's own clock, carried on from when it last said what it shows."""
        shown, at = self._uptime
        return shown + time.monotonic() - at

    def heard(self, uptime_seconds: float) -> None:
        """A sign of life, which says what the node's clock shows."""
        self._heard_at = time.monotonic()
        self._uptime = (uptime_seconds, self._heard_at)

    async def _changed(self, seconds: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)

    def _tell(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._shared.changed()

    # --- keeping it connected

    async def keep(self) -> None:
        """Dial, watch, dial again; until cancelled."""
        try:
            while True:
                await self._until_allowed()
                link = await self._dial()
                while link is not None:
                    link = await self._watch(link)
        finally:
            if self._link is not None:
                await self._link.close()

    def broken(self, task: asyncio.Task[None]) -> None:
        """Our bug must not look like a node that was never dialled."""
        if not task.cancelled() and (error := task.exception()):
            log.error("%s is no longer kept connected", self.name, exc_info=error)
            self.reason, self.tried = f"a bug in sshgrid: {type(error).__name__}: {error}", True
            self._tell()

    async def _until_allowed(self) -> None:
        while not self._breaker.allows(time.monotonic()):
            self._wake.clear()
            try:
                async with asyncio.timeout(max(0.05, self._breaker.next_try - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def dial_now(self) -> None:
        """Whatever the breaker says: a person asked."""
        if not self.up:
            self._breaker = Breaker()
            self.tried = False
            self._wake.set()

    async def _dial(self) -> Link | None:
        self._breaker = self._breaker.dial_started()
        try:
            link = await first_of_two(self._open, Link.close, lambda: bool(self.running))
        except HostError as error:
            longest = WAITED_FOR_SECONDS if self.running else DIAL_MAX_SECONDS
            self._breaker = self._breaker.failed(time.monotonic(), error, self._shared.rng, longest)
            self.reason = error.reason
            self.tried = True
            log.info("%s is down: %s", self.name, error.reason)
            self._tell()
            return None
        return self._adopt(link)

    def _adopt(self, link: Link) -> Link:
        self._breaker = self._breaker.succeeded()
        self._link, self.facts, self.reason, self.tried = link, link.facts, "", True
        self.heard(link.facts.uptime_seconds)
        self._learn(link)
        log.info("%s is up: %s %s, %d cores", self.name, link.facts.system, link.facts.architecture, link.facts.cores)
        self._tell()
        return link

    async def _open(self) -> Link:
        # The door first: who waits for a slow server must not keep others from theirs.
        async with self._shared.dial_limits.server(self.config), self._shared.dial_limits.handshakes:
            return await Link.open(self.config, self._shared.dialing, self._shared.tools, self._felt)

    def _felt(self, sample: Sample) -> None:
        first = self.sample is None or self.sample.busy_cores is None
        self.sample = sample
        if sample.busy_cores is not None:
            self.busy_minute.append(sample.busy_cores)
        self.heard(sample.uptime_seconds)
        if first:  # only the first samples decide whether a waiting job may choose
            self._shared.changed()

    async def _watch(self, link: Link) -> Link | None:
        """Until the connection is lost, or silent for too long; the new one, if one has answered by then."""
        spare = Spare(self._open, Link.close)
        testing = asyncio.create_task(self._test_toolchains(link))
        tidying = asyncio.create_task(self._tidy(link))
        try:
            while not link.lost.done():
                # A node that speaks is not looked at again before it could have been silent for long.
                patience = SUSPECT_SECONDS if self.running and not spare.begun else SILENCE_SECONDS
                rest = patience - self.silent_seconds()
                news: list[asyncio.Future[Any]] = [link.lost, *spare.dials]
                timeout = min(max(rest, 0.05), SILENCE_SECONDS)
                await asyncio.wait(news, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if tidying.done():
                    tidying.result()  # it ends with the link, or by a bug of ours
                if not link.lost.done():
                    await self._judge_silence(link, spare)
        finally:
            testing.cancel()
            tidying.cancel()
            await asyncio.gather(testing, tidying, return_exceptions=True)
            successor = await spare.end()
        self.reason = link.lost.result().reason
        self.sample = None
        self.busy_minute.clear()
        log.info("%s: connection lost: %s", self.name, self.reason)
        self._tell()
        await link.close()
        return None if successor is None else self._adopt(successor)

    async def _judge_silence(self, link: Link, spare: Spare[Link]) -> None:
        """A silent node with runs is dialled beside: after a reboot the old connection would be slow to tell."""
        silent = self.silent_seconds()
        if spare.answered:
            await link.close(Dropped(self.name, "silent, while a new connection is answered"))
        elif silent > SILENCE_SECONDS:
            await link.close(Dropped(self.name, f"no answer for {silent:.0f} s"))
        elif silent > SUSPECT_SECONDS and self.running:
            spare.begin()
        elif silent <= SUSPECT_SECONDS:
            await spare.drop()

    async def _tidy(self, link: Link) -> None:
        """Whatever no job needs any more. Apart from the watch, as a node may fall silent in the middle of it."""
        await self._find_strays(link)
        # A start that an old connection still held back comes until the node refuses it as too late.
        strays_at = time.monotonic() + STRAYS_AGAIN_SECONDS
        sweep_at = time.monotonic() + FIRST_SWEEP_SECONDS
        while not link.lost.done():
            await self._clean_leftovers(link)
            if time.monotonic() >= strays_at:
                await self._find_strays(link)
                strays_at = math.inf
            if time.monotonic() >= sweep_at:
                await self._sweep(link)
                sweep_at = time.monotonic() + SWEEP_SECONDS
            await asyncio.wait([link.lost], timeout=1.0 if self.leftovers else TIDY_SECONDS)

    async def _find_strays(self, link: Link) -> None:
        """Runs of this grid that nobody knows any more: an earlier master did not live to clean them."""
        try:
            there = await link.runs(self._shared.grid)
        except HostError as error:
            log.info("%s: its runs could not be listed: %s", self.name, error.reason)
            return
        # Of these, what runs for another node (they may share a working folder) is spared while it does.
        self.leftovers |= set(there) - self.running.keys() - self.claims - self._shared.test_runs

    async def _clean_leftovers(self, link: Link) -> None:
        # Asked every second by every node: what all of them run is only gathered when there is something to compare.
        runs = sorted(self.leftovers - self._shared.known_runs()) if self.leftovers else []
        if not runs:
            return
        try:
            await link.clean(runs)
        except NodeUnfit as error:
            log.warning("%s: %s", self.name, error.reason)
        except HostError as error:
            log.info("%s: leftovers stay for now: %s", self.name, error.reason)
            return
        self.leftovers.difference_update(runs)

    async def _sweep(self, link: Link) -> None:
        try:
            await link.sweep(SWEEP_DAYS, SWEEP_BYTES)
        except HostError as error:
            log.info("%s: sweep stopped: %s", self.name, error.reason)

    # --- toolchains

    def _learn(self, link: Link) -> None:
        """Which languages are proved, which are refuted, and which have to be tested."""
        known = check_records(link.found.proofs)
        self.toolchains, self.problems, self.untested = {}, {}, frozenset()
        for row in self._shared.languages:
            candidate = self._candidate(row, link)
            if candidate is None:
                continue
            proof = known.get(row.name)
            if proof is None or proof.fingerprint != candidate.fingerprint:
                self.untested |= {row.name}
            else:
                self._believe(candidate, proof)

    def _candidate(self, row: Language, link: Link) -> Toolchain | None:
        if self.config.toolchains is not None and row.name not in self.config.toolchains:
            return None
        commands = toolchains.resolve(row, link.found.tools)
        if commands is None:
            return None
        signatures = link.found.signatures
        # An inode is one file of one node; size and time are the same wherever the same package is.
        kinds = {path: signature.partition(" ")[2] for path, signature in signatures.items()}
        fingerprint, kind = (_fingerprint(row, commands, each) for each in (signatures, kinds))
        return Toolchain(row.name, "", commands, fingerprint, kind)

    def _believe(self, candidate: Toolchain, proof: CheckRecord) -> None:
        self.untested -= {candidate.language}
        if proof.problem:
            self.problems[candidate.language] = proof.problem
        else:
            proved = msgspec.structs.replace(candidate, version=proof.version)
            self.toolchains = {**self.toolchains, candidate.language: proved}

    async def say_hello(self, language: str, maker: str) -> SmokeTest:
        """The hello that `maker` gives away, said here. Raises HostError when this node does not answer."""
        link = await self.connected(0)
        row, found = self._shared.language(language), self.toolchains.get(language)
        if found is None:
            return SmokeTest(f"{self.name} no longer has {language}")
        return await self._prover().say_hello_of(maker, row, found, link.facts)

    def want(self, language: str) -> None:
        """Somebody waits for this toolchain: test it before all others."""
        if language in self.untested and language not in self._wanted:
            self._wanted.append(language)
            self._wake.set()

    async def _test_toolchains(self, link: Link) -> None:
        """One after the other, those that are waited for first. A failing connection leaves them untested."""
        prover = self._prover()
        quiet_at = time.monotonic() + QUIET_SECONDS
        while not link.lost.done():
            self._wake.clear()
            language = self._next_test(quiet_at)
            if language is None:
                # With nothing left to test, only somebody who wants a language wakes it: there are a thousand of these.
                await self._pause(max(quiet_at, time.monotonic() + QUIET_SECONDS) if self._common() else None)
                continue
            try:
                await self._test(prover, link, language)
            except HostError as error:
                log.info("%s: test of %s stopped: %s", self.name, language, error.reason)
                quiet_at = time.monotonic() + RETEST_SECONDS

    def _prover(self) -> ToolchainChecker:
        return ToolchainChecker(self._shared.grid, self._shared.spool, self.engine, self._shared.test_runs)

    async def _test(self, prover: ToolchainChecker, link: Link, language: str) -> None:
        row = self._shared.language(language)
        candidate = self._candidate(row, link)
        assert candidate is not None
        proof = await prover.prove(row, candidate, link.facts)
        self._believe(candidate, proof)
        self._tell()
        await link.prove(_file_name(language), proof.line())

    def _next_test(self, quiet_at: float) -> str | None:
        """What somebody waits for; else, on a quiet node, one of the common languages."""
        while self._wanted:
            language = self._wanted.pop(0)
            if language in self.untested:
                return language
        common = self._common()
        return min(common) if common and time.monotonic() >= quiet_at and not self.running else None

    def _common(self) -> set[str]:
        return {row.name for row in self._shared.languages if row.default} & self.untested

    async def _pause(self, until: float | None) -> None:
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            pass


def _count_since(moment: float, times: Sequence[float]) -> int:
    return sum(at > moment for at in times) if times else 0


def _fingerprint(row: Language, commands: Mapping[str, str], signatures: Mapping[str, str]) -> str:
    """Changes when the row of the table or one of its tools changes."""
    tools = sorted((name, path, signatures.get(path, "")) for name, path in commands.items())
    return hashlib.sha256(msgspec.json.encode((row, tools))).hexdigest()[:24]


def _file_name(language: str) -> str:
    return hashlib.sha256(language.encode()).hexdigest()[:16]
