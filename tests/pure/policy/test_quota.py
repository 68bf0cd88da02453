"""What a user may have: caps become limits, and what is over them is refused with both numbers."""

from __future__ import annotations

import msgspec
import pytest

from sshgrid.errors import OverLimit
from sshgrid.model import Caps, Group, Limits, Node, Program, SourceFile, Submission
from sshgrid.policy import quota
from sshgrid.policy.placement import NodeView

CAPS = Caps(queued=2, running=1, wall_seconds=60.0, output_bytes=1000, upload_bytes=100)


def asked(limits: Limits | None = None, size: int = 1, stdin: int = 0) -> Submission:
    typed = SourceFile("stdin", "1" * 64, stdin) if stdin else None
    return Submission(
        Program("sh", "a.sh", (SourceFile("a.sh", "0" * 64, size),), stdin=typed, limits=limits or Limits()), "a.sh"
    )


def test_a_limit_that_was_not_asked_for_is_the_cap_and_a_smaller_one_stays() -> None:
    assert quota.apply_caps(asked(), CAPS, 0).program.limits == Limits(60.0, None, 1000)
    wish = Limits(5.0, 1 << 20, 10)
    assert quota.apply_caps(asked(wish), CAPS, 1).program.limits == wish
    assert quota.apply_caps(asked(), Caps(), 10_000) == asked()


@pytest.mark.parametrize(
    ("submission", "waiting", "words"),
    [
        (asked(), 2, ("2 of your jobs", "no more than 2")),
        (asked(size=60, stdin=41), 0, ("101", "no more than 100")),
        (asked(Limits(wall_seconds=61.0)), 0, ("1m1s", "no more than 1m")),
        (asked(Limits(output_bytes=1001)), 0, ("1,001", "no more than 1,000")),
    ],
)
def test_A33_too_much_is_refused_with_the_number_and_the_limit(
    submission: Submission, waiting: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(OverLimit) as refused:
        quota.apply_caps(submission, CAPS, waiting)
    assert all(word in refused.value.message for word in words), refused.value.message


def test_what_travels_with_a_run_counts_and_what_comes_back_keeps_to_the_same_cap() -> None:
    files = (SourceFile("d", "2" * 64, 60), SourceFile("p", "3" * 64, 40))
    program = msgspec.structs.replace(asked().program, data=files[:1], packs=files[1:])
    with pytest.raises(OverLimit, match="101"):
        quota.apply_caps(Submission(program, "a.sh"), CAPS, 0)
    fetching = msgspec.structs.replace(asked().program, fetch=("out",))
    assert quota.apply_caps(Submission(fetching, "a.sh"), CAPS, 0).program.limits.fetch_bytes == 100
    assert quota.apply_caps(asked(), CAPS, 0).program.limits.fetch_bytes is None
    assert quota.apply_caps(Submission(fetching, "a.sh"), Caps(), 0).program.limits.fetch_bytes is None


def test_who_runs_as_much_as_allowed_has_to_wait() -> None:
    assert [quota.running_limit_reached(running, CAPS) for running in (0, 1, 2)] == [False, True, True]
    assert not quota.running_limit_reached(10_000, Caps())


def test_a_limit_of_processes_survives_the_caps() -> None:
    assert quota.apply_caps(asked(Limits(processes=7)), CAPS, 0).program.limits == Limits(60.0, None, 1000, 7)


def test_a_group_is_closed_for_who_has_used_it_up() -> None:
    views = [NodeView(Node(name)) for name in ("a", "b", "c")]
    groups = [Group("lab", frozenset({"a", "b"}), 2), Group("rest", frozenset({"c"}))]
    assert quota.apply_group_limits(views, groups, ["a", "c", "c", "c"]) is views
    seen = quota.apply_group_limits(views, groups, ["a", "b"])
    assert [bool(view.user_limit) for view in seen] == [True, True, False]
    assert seen[0].user_limit == "2 of this user's jobs run in lab, and no more than 2 may"
