"""Limits of users: caps become limits, and a request above a cap is an error with the number and the limit."""

from __future__ import annotations

import msgspec
import pytest

from sshgrid.errors import OverLimit
from sshgrid.model import Caps, Group, Limits, Node, Program, SourceFile, Submission
from sshgrid.policy import user_limits
from sshgrid.policy.placement import NodeView

CAPS = Caps(queued=2, running=1, wall_seconds=60.0, output_bytes=1000, upload_bytes=100)


def submission_of(limits: Limits | None = None, size: int = 1, stdin: int = 0) -> Submission:
    typed = SourceFile("stdin", "1" * 64, stdin) if stdin else None
    return Submission(
        Program("sh", "a.sh", (SourceFile("a.sh", "0" * 64, size),), stdin=typed, limits=limits or Limits()), "a.sh"
    )


def test_an_open_limit_becomes_the_cap_and_a_smaller_limit_stays() -> None:
    assert user_limits.apply_caps(submission_of(), CAPS, 0).program.limits == Limits(60.0, None, 1000)
    requested = Limits(5.0, 1 << 20, 10)
    assert user_limits.apply_caps(submission_of(requested), CAPS, 1).program.limits == requested
    assert user_limits.apply_caps(submission_of(), Caps(), 10_000) == submission_of()


@pytest.mark.parametrize(
    ("submission", "queued", "words"),
    [
        (submission_of(), 2, ("limit of queued jobs is 2", "you have 2")),
        (submission_of(size=60, stdin=41), 0, ("101", "limit is 100")),
        (submission_of(Limits(wall_seconds=61.0)), 0, ("1m1s", "limit of 1m")),
        (submission_of(Limits(output_bytes=1001)), 0, ("1,001", "limit of 1,000")),
    ],
)
def test_A33_a_submission_above_a_cap_is_an_error_with_the_number_and_the_limit(
    submission: Submission, queued: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(OverLimit) as refused:
        user_limits.apply_caps(submission, CAPS, queued)
    assert all(word in refused.value.message for word in words), refused.value.message


def test_the_upload_cap_limits_data_and_packs_and_fetched_files() -> None:
    files = (SourceFile("d", "2" * 64, 60), SourceFile("p", "3" * 64, 40))
    program = msgspec.structs.replace(submission_of().program, data=files[:1], packs=files[1:])
    with pytest.raises(OverLimit, match="101"):
        user_limits.apply_caps(Submission(program, "a.sh"), CAPS, 0)
    fetching = msgspec.structs.replace(submission_of().program, fetch=("out",))
    assert user_limits.apply_caps(Submission(fetching, "a.sh"), CAPS, 0).program.limits.fetch_bytes == 100
    assert user_limits.apply_caps(submission_of(), CAPS, 0).program.limits.fetch_bytes is None
    assert user_limits.apply_caps(Submission(fetching, "a.sh"), Caps(), 0).program.limits.fetch_bytes is None


def test_the_running_limit_is_reached_at_the_cap() -> None:
    assert [user_limits.running_limit_reached(running, CAPS) for running in (0, 1, 2)] == [False, True, True]
    assert not user_limits.running_limit_reached(10_000, Caps())


def test_a_process_limit_stays_when_caps_are_applied() -> None:
    assert user_limits.apply_caps(submission_of(Limits(processes=7)), CAPS, 0).program.limits == Limits(
        60.0, None, 1000, 7
    )


def test_a_user_at_the_limit_of_a_group_gets_a_user_limit_on_its_nodes() -> None:
    views = [NodeView(Node(name)) for name in ("a", "b", "c")]
    groups = [Group("lab", frozenset({"a", "b"}), 2), Group("rest", frozenset({"c"}))]
    assert user_limits.apply_group_limits(views, groups, ["a", "c", "c", "c"]) is views
    seen = user_limits.apply_group_limits(views, groups, ["a", "b"])
    assert [bool(view.user_limit) for view in seen] == [True, True, False]
    assert seen[0].user_limit == "the user runs 2 of at most 2 jobs in group lab"
