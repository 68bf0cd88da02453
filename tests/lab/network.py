"""The network of a lab: one bridge with its own subnet, and a veth pair to the network namespace of each host.

Names contain the number of the subnet (10.77.NUMBER.0/24). Creating the bridge reserves that number, so several labs
can run at the same time. Hardware addresses are fixed and entered on both sides: a cut link drops packets silently,
without the "no route to host" of ARP, and a host that was off is reachable again at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.lab.machine import LabError, call, in_network, start_time

NAMESPACES = Path("/run/netns")
PREFIX = "sgl"


@dataclass(frozen=True)
class Subnet:
    number: int

    @property
    def bridge(self) -> str:
        return f"{PREFIX}{self.number}"

    @property
    def hardware(self) -> str:
        return f"02:4c:4d:{self.number:02x}:00:01"

    def remove(self) -> None:
        call("ip", "link", "del", self.bridge)


class Wire:
    """The network link of one host in a subnet."""

    def __init__(self, subnet: Subnet, name: str, position: int) -> None:
        self.subnet = subnet
        self.name = name
        self.position = position
        self._is_filtered = False

    @property
    def namespace(self) -> str:
        return f"{self.subnet.bridge}-{self.name}"

    @property
    def plug(self) -> str:
        """The interface in the bridge, which a cut takes down."""
        return f"{self.subnet.bridge}p{self.position}"

    @property
    def address(self) -> str:
        return f"10.77.{self.subnet.number}.{10 + self.position}"

    @property
    def hardware(self) -> str:
        return f"02:4c:4d:{self.subnet.number:02x}:01:{self.position:02x}"

    @property
    def namespace_path(self) -> Path:
        return NAMESPACES / self.namespace

    def create(self) -> None:
        """Create the namespace and connect it to the bridge."""
        bridge, gateway = self.subnet.bridge, self.subnet.hardware
        call("ip", "netns", "add", self.namespace)
        outside = f"""
            link add {self.plug} type veth peer name eth0 address {self.hardware} netns {self.namespace}
            link set {self.plug} master {bridge}
            link set {self.plug} up
            neigh replace {self.address} lladdr {self.hardware} dev {bridge} nud permanent
        """
        inside = f"""
            link set lo up
            addr add {self.address}/24 dev eth0
            link set eth0 up
            neigh replace 10.77.{self.subnet.number}.1 lladdr {gateway} dev eth0 nud permanent
        """
        call("ip", "-batch", "-", stdin=outside)
        call("ip", "-n", self.namespace, "-batch", "-", stdin=inside)

    def set_link(self, up: bool) -> None:
        call("ip", "link", "set", self.plug, "up" if up else "down")

    def filter(self, rule: str) -> None:
        """Apply one nftables rule to all incoming packets; `""` removes it."""
        if not rule and not self._is_filtered:
            return
        table = f"table inet lab {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}"
        rules = f"table inet lab\ndelete table inet lab\n{table if rule else ''}\n"
        call("ip", "netns", "exec", self.namespace, "nft", "-f", "-", stdin=rules)
        self._is_filtered = bool(rule)

    def remove(self) -> None:
        """Remove the link and its namespace. LabError when a process is still in it."""
        left = in_network(self.namespace_path)
        call("ip", "link", "del", self.plug)
        call("ip", "netns", "del", self.namespace)
        self._is_filtered = False
        if left:
            raise LabError(f"{self.namespace}: processes left: {left}")


def claim_subnet() -> Subnet:
    """Create a bridge with a free number, marked with this pid: a later lab can detect that the process has ended."""
    for offset in range(256):
        subnet = Subnet((os.getpid() + offset) % 256)
        try:
            call("ip", "link", "add", subnet.bridge, "address", subnet.hardware, "type", "bridge")
        except LabError as error:
            if "File exists" not in str(error):
                raise
            continue
        call("ip", "link", "set", subnet.bridge, "alias", _owner(os.getpid()), "up")
        call("ip", "addr", "add", f"10.77.{subnet.number}.1/24", "dev", subnet.bridge)
        return subnet
    raise LabError("all 256 lab subnets are taken")


def remove_dead_subnets() -> list[int]:
    """Remove the networks of labs whose process was killed; returns their numbers."""
    removed = []
    for bridge in Path("/sys/class/net").glob(f"{PREFIX}[0-9]*"):
        suffix = bridge.name.removeprefix(PREFIX)
        if suffix.isdecimal() and _is_dead((bridge / "ifalias").read_text().strip()):
            for namespace in NAMESPACES.glob(f"{bridge.name}-*"):
                call("ip", "netns", "del", namespace.name)
            call("ip", "link", "del", bridge.name)
            removed.append(int(suffix))
    return removed


def _owner(pid: int) -> str:
    return f"sshgrid lab of {pid} {start_time(pid)}"


def _is_dead(alias: str) -> bool:
    words = alias.split()
    # A bridge without the mark was created a moment ago, or does not belong to a lab.
    return alias.startswith("sshgrid lab of ") and str(start_time(int(words[3]))) != words[4]
