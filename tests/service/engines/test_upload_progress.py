"""How often the progress of an upload is reported."""

from __future__ import annotations

from sshgrid.clock import Clock
from sshgrid.engines.upload_progress import LARGE_BYTES, REPORT_SECONDS, UploadProgress
from sshgrid.testing.contract import Notes


class Reports(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.reports: list[tuple[int, int]] = []
        self.now = 0.0
        self.clock = Clock(lambda: self.now, lambda: self.now)

    async def uploaded(self, count: int, left: int = 0) -> None:
        self.reports.append((count, left))


async def test_a_small_upload_is_reported_once_at_its_end() -> None:
    sink = Reports()
    progress = UploadProgress(sink, LARGE_BYTES - 1, sink.clock)
    for _ in range(3):
        sink.now += 10.0
        await progress.sent(100)
    assert sink.reports == []
    await progress.end()
    assert sink.reports == [(300, 0)]


async def test_a_large_upload_is_reported_a_few_times_a_second() -> None:
    sink = Reports()
    progress = UploadProgress(sink, LARGE_BYTES, sink.clock)
    for _ in range(5):
        sink.now += REPORT_SECONDS / 2
        await progress.sent(1000)
    assert sink.reports == [(2000, LARGE_BYTES - 2000), (2000, LARGE_BYTES - 4000)]
    await progress.end()
    assert sink.reports[-1] == (1000, 0)
