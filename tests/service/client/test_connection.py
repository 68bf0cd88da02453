"""A connection to a master: replies, failures, sockets that are refused, and sends in signal handlers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sshgrid.client import connection, start
from sshgrid.errors import MasterGone, NoSuchJob, StoreError
from sshgrid.model import JobId
from sshgrid.protocol import messages
from tests.service.conftest import Cli
from tests.service.fake_master import CLOSE, FakeMaster


def test_a_reply_is_returned_and_a_failure_is_raised(fake: FakeMaster, cli: Cli) -> None:
    with start.connect(cli.places, start=False) as link:
        assert link.request(messages.Status(), messages.StatusReply).pid == 4242
        fake.reply(messages.Info, messages.Failure("no-such-job", "no such job: 7", "sshgrid ps -a", 1))
        with pytest.raises(NoSuchJob, match="no such job: 7") as caught:
            link.request(messages.Info(JobId(7)), messages.JobsReply)
        assert (caught.value.hint, caught.value.exit_status) == ("sshgrid ps -a", 1)


def test_an_unknown_error_keeps_its_code_and_status() -> None:
    error = connection.to_error(messages.Failure("from-the-future", "what?", "", 77))
    assert (error.code, error.message, error.exit_status) == ("from-the-future", "what?", 77)


def test_a_closed_connection_is_a_lost_master(fake: FakeMaster, cli: Cli) -> None:
    fake.reply(messages.Status, CLOSE)
    with start.connect(cli.places, start=False) as link, pytest.raises(MasterGone):
        link.request(messages.Status(), messages.StatusReply)


def test_a_socket_folder_that_others_can_write_is_refused(fake: FakeMaster, cli: Cli) -> None:
    Path(cli.places.state_dir).chmod(0o777)
    with pytest.raises(StoreError, match=r"can be written by others \(mode 0777\)"):
        start.connect(cli.places, start=False)


def test_A41_a_link_in_place_of_the_state_folder_is_refused(cli: Cli, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    state = Path(cli.places.state_dir)
    state.parent.mkdir(parents=True)
    state.symlink_to(elsewhere)
    with pytest.raises(StoreError, match="has the wrong type"):
        start.connect(cli.places)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a folder away")
def test_a_state_folder_of_another_user_is_refused(cli: Cli) -> None:
    state = Path(cli.places.state_dir)
    state.mkdir(parents=True, mode=0o700)
    os.chown(state, 12345, 12345)
    with pytest.raises(StoreError, match="belongs to another user"):
        start.connect(cli.places)


def test_a_signal_handler_never_splits_a_message(fake: FakeMaster, cli: Cli) -> None:
    """A message that is queued during a send is sent after it, as a whole."""
    with start.connect(cli.places, start=False) as link:
        link._sending = True
        link.queue(messages.Cancel((JobId(1),)))
        assert not link.flush_some()
        link._sending = False
        assert (
            link.request(messages.Status(), messages.Done).count == 1
        )  # the reply to the Cancel, which was sent first
        fake.wait_for(messages.Status)
    assert [type(message) for message, _ in fake.requests] == [messages.Hello, messages.Cancel, messages.Status]
