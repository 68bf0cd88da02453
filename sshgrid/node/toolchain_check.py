"""The toolchain checks of one node: which languages work there, which do not, and which are still to be checked.

A toolchain counts only after its smoke test has run on the node. The result is recorded on the node as one line, which
counts as long as the tools and the row of the language table are the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping

import msgspec

from sshgrid import toolchains
from sshgrid.engines import Runs
from sshgrid.errors import SshgridError
from sshgrid.model import Language, Toolchain
from sshgrid.node.shared import Shared
from sshgrid.node.smoke_test import CheckRecord, SmokeTest, SmokeTester
from sshgrid.ssh.link import Link

log = logging.getLogger(__name__)

QUIET_SECONDS = 3.0  # after the node has come up: then toolchains that no job asked for are checked
RETRY_SECONDS = 30.0  # after a check that a failing connection has ended


class NodeToolchains:
    """The toolchains of one node.

    Runs that a check could not remove go to `leftovers`; `is_idle` says whether the node has no runs; `changed` is
    called after a check.
    """

    def __init__(
        self,
        name: str,
        shared: Shared,
        runs: Runs,
        leftovers: set[str],
        is_idle: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self.working: Mapping[str, Toolchain] = {}  # by language; replaced, never changed: views hold it
        self.problems: dict[str, str] = {}  # by language: why its toolchain does not work
        self.untested: frozenset[str] = frozenset()
        self._name = name
        self._shared = shared
        self._smoke_tests = SmokeTester(shared, runs, leftovers)
        self._is_idle = is_idle
        self._changed = changed
        self._wanted: list[str] = []  # in the order of the requests
        self._requested = asyncio.Event()

    def want(self, language: str) -> None:
        """Check this toolchain before all others, as a job waits for it."""
        if language in self.untested and language not in self._wanted:
            self._wanted.append(language)
            self._requested.set()

    # --- what is known

    def learn(self, link: Link) -> None:
        """Start from the records that the node has kept: sort the languages into working, problems and untested."""
        records = check_records(link.found.checks)
        self.working, self.problems, self.untested = {}, {}, frozenset()
        for row in self._shared.languages:
            candidate = _candidate(row, link)
            if candidate is None:
                continue
            record = records.get(row.name)
            if record is None or record.fingerprint != candidate.fingerprint:
                self.untested |= {row.name}
            else:
                self._apply(candidate, record)

    def _apply(self, candidate: Toolchain, record: CheckRecord) -> None:
        self.untested -= {candidate.language}
        if record.problem:
            self.problems[candidate.language] = record.problem
        else:
            found = msgspec.structs.replace(candidate, version=record.version)
            self.working = {**self.working, candidate.language: found}

    # --- checks

    async def check_all(self, link: Link) -> None:
        """Check untested toolchains one after the other until the connection is lost, wanted ones first."""
        clock = self._shared.clock
        quiet_at = clock.monotonic() + QUIET_SECONDS
        while not link.lost.done():
            self._requested.clear()
            language = self._next(quiet_at)
            if language is None:
                # With nothing left to check, only a request wakes this task: there may be a thousand of them.
                more = self._common()
                await self._wait_for_request(max(quiet_at, clock.monotonic() + QUIET_SECONDS) if more else None)
                continue
            try:
                await self._check(link, language)
            except SshgridError as error:  # also a full disk here, or a language that has just left the inventory
                log.info("cannot check %s on %s yet: %s", language, self._name, error)
                quiet_at = clock.monotonic() + RETRY_SECONDS

    def _next(self, quiet_at: float) -> str | None:
        """Return a wanted language; else, on an idle node after `quiet_at`, one of the common languages."""
        while self._wanted:
            language = self._wanted.pop(0)
            if language in self.untested:
                return language
        common = self._common()
        return min(common) if common and self._shared.clock.monotonic() >= quiet_at and self._is_idle() else None

    def _common(self) -> set[str]:
        return {row.name for row in self._shared.languages if row.default} & self.untested

    async def _wait_for_request(self, until: float | None) -> None:
        seconds = None if until is None else max(0.0, until - self._shared.clock.monotonic())
        try:
            async with asyncio.timeout(seconds):
                await self._requested.wait()
        except TimeoutError:
            pass

    async def _check(self, link: Link, language: str) -> None:
        row = self._shared.language(language)
        candidate = _candidate(row, link)
        assert candidate is not None
        record = await self._smoke_tests.check(row, candidate, link.facts)
        self._apply(candidate, record)
        self._changed()
        await link.maintenance.record_check(_file_name(language), record_line(record))

    async def run_smoke_test(self, language: str, maker: str, link: Link) -> SmokeTest:
        """Run the smoke test that the node `maker` builds. Raises HostError when this node does not answer."""
        row, found = self._shared.language(language), self.working.get(language)
        if found is None:
            return SmokeTest(f"{self._name} no longer has {language}")
        return await self._smoke_tests.run_build_of(maker, row, found, link.facts)


def record_line(record: CheckRecord) -> str:
    """Return the line that the node keeps of a check."""
    fields = (record.language, record.fingerprint, record.version, record.problem)
    return "\t".join(" ".join(field.split()) for field in fields)


def check_records(lines: Iterable[str]) -> dict[str, CheckRecord]:
    """Parse the lines that a node has kept, by language. Ignores lines of another form."""
    fields = (line.split("\t") for line in lines)
    return {parts[0]: CheckRecord(*parts) for parts in fields if len(parts) == 4}


def _candidate(row: Language, link: Link) -> Toolchain | None:
    """Return the toolchain that the node's tools make; None when tools are missing or the inventory rules it out."""
    allowed = link.node.toolchains
    commands = toolchains.resolve(row, link.found.tools)
    if commands is None or (allowed is not None and row.name not in allowed):
        return None
    signatures = link.found.signatures
    # An inode is one file of one node; size and time are the same wherever the same package is installed.
    kinds = {path: signature.partition(" ")[2] for path, signature in signatures.items()}
    fingerprint, kind = (_fingerprint(row, commands, each) for each in (signatures, kinds))
    return Toolchain(row.name, "", commands, fingerprint, kind)


def _fingerprint(row: Language, commands: Mapping[str, str], signatures: Mapping[str, str]) -> str:
    """Return a digest that changes when the row of the table or one of its tools changes."""
    tools = sorted((name, path, signatures.get(path, "")) for name, path in commands.items())
    return hashlib.sha256(msgspec.json.encode((row, tools))).hexdigest()[:24]


def _file_name(language: str) -> str:
    return hashlib.sha256(language.encode()).hexdigest()[:16]
