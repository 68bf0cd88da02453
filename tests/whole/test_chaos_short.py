"""The short form of `make chaos`: faults for 35 seconds, and no job is lost. SSHGRID_CHAOS_SEED sets another seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.chaos import Settings, chaos_run
from tests.lab.hosts import Lab

SEED = int(os.environ.get("SSHGRID_CHAOS_SEED", "11"))
JOBS = 60
SECONDS = 35.0


@pytest.mark.lab
def test_no_job_is_lost_while_hosts_clients_and_masters_fail(lab_hosts: Lab, tmp_path: Path) -> None:
    report = chaos_run(Settings(SEED, JOBS, len(lab_hosts.hosts), 3, SECONDS), lab_hosts, tmp_path)
    assert report.accepted >= JOBS, report.text
    assert report.is_clean, report.text
