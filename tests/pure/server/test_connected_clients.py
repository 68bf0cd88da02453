"""Which clients count as connected, and since when."""

from __future__ import annotations

from sshgrid.clock import Clock
from sshgrid.model import JobId
from sshgrid.protocol.messages import ClientLine
from sshgrid.server.connected_clients import MOST_REMEMBERED, ConnectedClients


def test_a_client_is_connected_since_the_oldest_open_connection() -> None:
    now = 10.0
    clients = ConnectedClients(lambda job: True, Clock(lambda: now, lambda: 0.0))
    first = clients.connected("ann", "local")
    now = 20.0
    assert clients.connected("ann", "local") is first
    assert clients.lines() == (ClientLine("ann", "local", 10.0, 0, 0, 2),)
    clients.disconnected(first)
    clients.disconnected(first)
    assert clients.lines() == ()
    now = 30.0
    clients.connected("ann", "local")
    assert clients.lines() == (ClientLine("ann", "local", 30.0, 0, 0, 1),)


def test_a_client_without_connections_is_listed_until_its_jobs_are_done() -> None:
    done: set[JobId] = set()
    clients = ConnectedClients(done.__contains__)
    client = clients.connected("ann", "10.0.0.1")
    for job in (JobId(7), JobId(7), JobId(8)):  # 7 is submitted twice, with the same key
        client.submitted(job)
    clients.disconnected(client)
    (line,) = clients.lines()
    assert (line.programs, line.running, line.connections) == (2, 2, 0)
    done |= {JobId(7), JobId(8)}
    assert clients.lines() == ()


def test_the_number_of_remembered_clients_is_limited() -> None:
    clients = ConnectedClients(lambda job: True)
    for number in range(MOST_REMEMBERED + 10):
        clients.disconnected(clients.connected("ann", f"10.0.{number}"))
    assert len(clients) <= MOST_REMEMBERED
