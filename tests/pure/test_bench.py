"""The benchmark: the check of runs, targets, and peers that fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.comparison import Comparison
from bench.installed import Failed
from bench.peers.fraction import Fraction
from bench.sweeps import FAILED, Target, row_of
from bench.work import Work, joblog_codes

WORK = Work(Path("/bin/echo"), ("1", "2", "2"), ("1", "2", "2"))


class FakePeer:
    """A peer with a given run and a given install."""

    def __init__(self, name: str, run: Callable[[Work], float], install: Callable[[], str] = lambda: "1.0") -> None:
        self.name = name
        self.run = run
        self.install = install
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def fails_to_install(*_: object) -> str:
    raise Failed("no such package")


def loses_a_run(_: Work) -> float:
    raise Failed("a run was lost")


@pytest.mark.parametrize(
    ("printed", "codes"),
    [
        ("1\n2\n", [0, 0, 0]),
        ("1\n2\n2\n2\n", [0, 0, 0]),
        ("1\n2\n3\n", [0, 0, 0]),
        ("1\n2\n2\n", [0, 0]),
        ("1\n2\n2\n", [0, 0, 0, 0]),
        ("1\n2\n2\n", [0, 1, 0]),
    ],
)
def test_check_fails_for_a_missing_repeated_or_failed_run_or_wrong_output(printed: str, codes: list[int]) -> None:
    WORK.check("peer", "2\n1\n2\n", [0, 0, 0])
    with pytest.raises(Failed):
        WORK.check("peer", printed, codes)


def test_joblog_codes_are_exit_codes_or_negative_signals(tmp_path: Path) -> None:
    log = tmp_path / "joblog"
    line = "1\th1\t1.0\t0.1\t0\t0\t{}\t{}\ttrue\n"
    log.write_text("Seq\n" + line.format(0, 0) + line.format(3, 0) + line.format(0, 9))
    assert joblog_codes(log) == [0, 3, -9]


@pytest.mark.parametrize(
    ("sign", "bound", "ours", "theirs", "figure", "met"),
    [
        (">=", 10, 1.0, 10.0, 10, True),
        (">=", 10, 1.0, 9.0, 9, False),
        ("<=", 0.2, 2.0, 10.0, 0.2, True),
        ("<=", 0.2, 3.0, 10.0, 0.3, False),
        ("<", 1, 2.0, 2.0, 1, False),
        (">=", None, 4.0, 1.0, 0.25, None),
    ],
)
def test_a_target_compares_rates_or_times_with_its_bound(
    sign: str, bound: float | None, ours: float, theirs: float, figure: float, met: bool | None
) -> None:
    target = Target(lambda _: FakePeer("peer", loses_a_run), sign, bound)
    assert target.figure(ours, theirs) == pytest.approx(figure)
    assert target.met(figure) is met


def test_the_figure_of_a_comparison_is_the_median_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.table.REST_SECONDS", 0)
    times = iter([1.0, 2.0, 4.0])
    ours, peer = FakePeer("ours", lambda _: 1.0), FakePeer("peer", lambda _: next(times))
    with Comparison([ours, peer]) as comparison:
        for _ in range(3):
            comparison.round(WORK)
    row = row_of("work", Target(lambda _: peer, ">=", 2), comparison, ours, peer)
    assert (row.figure, row.spread, row.target, row.met) == ("2.00", "1.00..4.00", ">= 2", True)
    assert "1.0" in row.note
    assert (ours.closed, peer.closed) == (1, 1)


@pytest.mark.parametrize(("run", "install"), [(loses_a_run, lambda: "1.0"), (lambda _: 1.0, fails_to_install)])
def test_a_peer_that_fails_is_a_missed_target_and_the_others_continue(
    run: Callable[[Work], float],
    install: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bench.table.REST_SECONDS", 0)
    ours, good, bad = FakePeer("ours", lambda _: 1.0), FakePeer("good", lambda _: 1.0), FakePeer("bad", run, install)
    with Comparison([ours, bad, good]) as comparison:
        comparison.round(WORK)
    target = Target(lambda _: good, ">=", 1)
    rows = [row_of("work", target, comparison, ours, peer) for peer in (bad, good)]
    assert [(row.figure, row.met) for row in rows] == [(FAILED, False), ("1.00", True)]
    assert "error: bad is excluded: " in capsys.readouterr().err
    assert bad.closed == 1


def test_a_fraction_runs_a_part_and_multiplies_its_time() -> None:
    work = replace(WORK, arguments=tuple("abcdefgh"), lines=tuple("ABCDEFGH"))
    share = Fraction(FakePeer("peer", lambda part: float(len(part.arguments))), 4)
    assert share.run(work) == 8.0
    assert work.part(4) == replace(work, arguments=("a", "e"), lines=("A", "E"))
    assert share.name == "peer (1 in 4 of them, x 4)"
