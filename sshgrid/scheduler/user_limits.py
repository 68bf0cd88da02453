"""What each user may run at the same time: on all nodes together, and on each group of nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from sshgrid.model import Caps, Group
from sshgrid.policy import user_limits
from sshgrid.policy.placement import NodeView
from sshgrid.queue.active_jobs import ActiveJobs

CapsOf: TypeAlias = Callable[[str], Caps]


class UserLimits:
    """The limits of all users. `caps_of` returns the caps of a user."""

    def __init__(self, active_jobs: ActiveJobs, caps_of: CapsOf) -> None:
        self.groups: Sequence[Group] = ()  # the groups of the inventory that have a limit
        self._active_jobs = active_jobs
        self.caps_of = caps_of

    def is_full(self, owner: str, running: Mapping[str, int]) -> bool:
        """Whether this user may start no more; `running` has the number of slots of each user."""
        return user_limits.running_limit_reached(running.get(owner, 0), self.caps_of(owner))

    def may_start(self, owner: str) -> bool:
        """Whether this user may have one more slot now."""
        caps = self.caps_of(owner)
        if caps.running is None:
            return True
        return not user_limits.running_limit_reached(self._active_jobs.slots_in_use().by_owner().get(owner, 0), caps)

    def views_of(self, views: Sequence[NodeView], owner: str) -> Sequence[NodeView]:
        """The nodes as this user may use them: closed where the limit of a group is reached."""
        if not self.groups:
            return views
        return user_limits.apply_group_limits(views, self.groups, self._active_jobs.slots_in_use().nodes_of(owner))
