"""From a job and its node to a RunSpec: the recipe, the main file, and how long to wait for a run that is resumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from sshgrid import toolchains
from sshgrid.clock import Clock
from sshgrid.engines.launch import LEASE_MARGIN_SECONDS, RunSpec
from sshgrid.errors import SshgridError
from sshgrid.model import Job, OnHostLoss, Program, Recipe
from sshgrid.node.managed_node import ManagedNode
from sshgrid.nodes import NodePool
from sshgrid.policy import retry
from sshgrid.scheduler import admission
from sshgrid.scheduler.attempt_registry import RunningAttempt

Tasks: TypeAlias = "Sequence[tuple[Job, RunningAttempt]]"  # of one batch, in the order in which they start


class Launching:
    """Builds what an engine needs to start or resume an attempt."""

    def __init__(self, pool: NodePool, clock: Clock) -> None:
        self._pool = pool
        self._blobs = pool.shared.spool.blobs
        self._clock = clock

    def spec(self, job: Job, running: RunningAttempt, node: ManagedNode, *, resume: bool) -> RunSpec:
        """What the engine of `node` needs for this attempt; also notes toolchain and isolation in its record.

        Raises SshgridError when the node no longer has the toolchain, or the spool no longer has the program's files.
        """
        return self._spec(job, running, node, self._main_file(job.submission.program, resume), resume)

    def batch_specs(self, tasks: Tasks, node: ManagedNode, *, resume: bool) -> list[RunSpec]:
        """As `spec`, for the tasks of one batch: they have the same main file, which is read once."""
        source = self._main_file(tasks[0][0].submission.program, resume)
        return [self._spec(job, running, node, source, resume) for job, running in tasks]

    def patience_seconds(self, job: Job, running: RunningAttempt) -> float:
        """Seconds to wait for the node of a run that an earlier master started."""
        if job.submission.on_host_loss is OnHostLoss.WAIT:
            return math.inf
        # The last lease from the earlier master ends within this patience and the margin: no second run before that.
        margin = LEASE_MARGIN_SECONDS if job.submission.on_host_loss is OnHostLoss.FENCE else 0.0
        return retry.patience(self._pool.shared.retry, self._clock.wall() - running.record.began) + margin

    def _spec(self, job: Job, running: RunningAttempt, node: ManagedNode, source: bytes, resume: bool) -> RunSpec:
        program = job.submission.program
        row = self._pool.shared.language(program.language)
        found = node.toolchains.working.get(program.language)
        if found is None and resume:
            found = admission.stand_in(row)  # the run is under way: the node's present toolchains do not matter
        if found is None or node.facts is None:
            raise SshgridError(f"{node.name} no longer has {program.language}")
        recipe = _shared_or_not(toolchains.recipe(row, found, program, source, node.facts), node)
        if job.submission.verify_build:
            recipe = toolchains.verified(recipe, row.name)
        running.build_key = recipe.build_key if recipe.shared else ""
        asked = job.submission
        spec = RunSpec(
            running.attempt,
            running.run,
            program,
            recipe,
            asked.interactive,
            asked.terminal,
            asked.keep_children,
            asked.on_host_loss,
            max(0.0, self._clock.wall() - running.record.began) if resume else 0.0,
            running.record.gpus,
        )
        toolchain = f"{found.language} {found.version}".strip()
        isolation = spec.isolation(node.facts)
        running.record = msgspec.structs.replace(running.record, toolchain=toolchain, isolation=isolation)
        return spec

    def _main_file(self, program: Program, resume: bool) -> bytes:
        """The content of the main file. Raises SshgridError when a restored queue came without its spool."""
        files = program.uploads
        lost = self._blobs.missing(file.sha256 for file in files)
        if lost and resume:
            return b""  # nothing is sent to a run that is under way
        if lost:
            names = ", ".join(file.name for file in files if file.sha256 in lost)[:80]
            raise SshgridError(f"{names} is no longer in the spool beside the queue")
        return self._blobs.read(next(file for file in program.files if file.name == program.entry).sha256)


def _shared_or_not(recipe: Recipe, node: ManagedNode) -> Recipe:
    return recipe if node.config.shared_builds else msgspec.structs.replace(recipe, shared=False)
