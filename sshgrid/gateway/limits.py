"""How much the SSH gateway serves at once, and for how long it waits."""

from __future__ import annotations

from sshgrid.model import Struct


class GatewayLimits(Struct, frozen=True):
    """Counts of connections and channels, and times in seconds. Tests use smaller ones."""

    # Connections that have logged in.
    connections: int = 500
    connections_per_user: int = 100
    channels_per_connection: int = 16
    idle_seconds: float = 600.0  # without a channel

    # Connections that have not logged in.
    incoming: int = 200
    incoming_per_address: int = 100
    logins_per_address: int = 20  # served at once, when the client has sent something; the others wait
    silent_per_address: int = 4  # served at once, when the client waits for the server to begin
    silent_seconds: float = 0.3  # a client that has sent nothing for this long counts as silent
    young_seconds: float = 2.0  # an older connection is closed when there are too many
    login_seconds: float = 20.0
    passwords_per_connection: int = 3
    keys_per_connection: int = 12  # an agent may hold many


DEFAULT_LIMITS = GatewayLimits()
