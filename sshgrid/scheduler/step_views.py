"""The nodes as one step of the scheduler sees them: each question about them is answered once per kind of job."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sshgrid.model import Job
from sshgrid.policy import placement
from sshgrid.policy.placement import NodeView
from sshgrid.scheduler.sweep_state import SweepState
from sshgrid.scheduler.user_limits import UserLimits


class StepViews:
    """All nodes at one moment; `replace` follows what the step itself starts."""

    def __init__(self, views: Sequence[NodeView], limits: UserLimits) -> None:
        self._limits = limits
        self._eligible_after_release: dict[tuple[placement.Requirements, frozenset[str]], Collection[str]] = {}
        self._end_seconds: dict[int, Sequence[tuple[float, str]]] = {}
        self.all: Sequence[NodeView] = ()
        self._by_name: Mapping[str, NodeView] = {}
        self.replace(views)

    def replace(self, views: Sequence[NodeView]) -> None:
        """Use these views of the nodes from now on."""
        self.all = views
        self._by_name = {view.node.name: view for view in views}
        self._eligible_after_release.clear()
        self._end_seconds.clear()

    def is_up(self, node: str) -> bool:
        """Whether this node is up."""
        view = self._by_name.get(node)
        return view is not None and view.up

    def of_owner(self, owner: str) -> Sequence[NodeView]:
        """The nodes as this user may use them."""
        return self._limits.views_of(self.all, owner)

    def eligible(self, state: SweepState) -> Sequence[NodeView]:
        """The nodes that would take one more task of this sweep now."""
        return placement.eligible(self.of_owner(state.job.owner), state.job.submission)

    def eligible_after_release(self, job: Job) -> Collection[str]:
        """The nodes where the job could start if a slot of theirs were free."""
        key = placement.requirements(job.submission), job.excluded
        if key not in self._eligible_after_release:
            self._eligible_after_release[key] = placement.eligible_after_release(self.all, job.submission, job.excluded)
        return self._eligible_after_release[key]

    def end_seconds(self, state: SweepState) -> Sequence[tuple[float, str]]:
        """When a task of this sweep that starts now would end on each eligible node, and the node; soonest first."""
        sweep = state.job.id
        if sweep not in self._end_seconds:
            found = [(state.seconds_on(view.node.name), view.node.name) for view in self.eligible(state)]
            self._end_seconds[sweep] = sorted((seconds, node) for seconds, node in found if seconds is not None)
        return self._end_seconds[sweep]
