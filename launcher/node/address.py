"""The address by which the other nodes reach this one, and the network interface that has it.

A name is no good for that: Debian writes a host's own name into /etc/hosts as 127.0.1.1, which gloo then gives to its
peers on other hosts.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

LOOPBACK = "127.0.0.1"
ANY_PORT = 9  # nothing is sent to it: connecting a datagram socket only chooses a route


def node_address(head: str, interface: str | None) -> str:
    """This node's IPv4 address on the interface; where none is named, on the route to the head.

    On the head that route may be the loopback, which no other node reaches: its first other address is taken then. A
    head that is given as the loopback means that all nodes are this host. Raises OSError where there is no address.
    """
    if interface is not None:
        return _address_of(interface)
    address = _route_to(head)
    if not _is_loopback(address) or head == "localhost" or _is_loopback(head):
        return address
    return next((other for _, other in _addresses() if not _is_loopback(other)), address)


def interface_of(address: str) -> str | None:
    """The interface with this address."""
    return next((name for name, own in _addresses() if own == address), None)


def _route_to(host: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, ANY_PORT))
        address: str = probe.getsockname()[0]
    return address


def _address_of(interface: str) -> str:
    for name, address in _addresses():
        if name == interface:
            return address
    raise OSError(f"cluster.network_interface={interface} has no IPv4 address on {socket.gethostname()}")


def _addresses() -> list[tuple[str, str]]:
    """Interfaces that are up with their IPv4 addresses, in the kernel's order."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family is socket.AddressFamily.AF_INET and name in up
    ]


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False
