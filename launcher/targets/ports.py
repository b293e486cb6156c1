"""A free port for launchers that want to be told one."""

from __future__ import annotations

import random
import socket

# Below Linux's ephemeral range (32768 and up), so that no outgoing connection takes the port between
# rendering and starting.
FIRST_PORT = 20_000
LAST_PORT = 32_767


def port_is_free(port: int) -> bool:
    """Whether a server could listen on the port now; one on any address of this host, IPv6 or not, is in the way."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104  closed at once; nothing listens
        except OSError:
            return False
        return True


def choose_port(seed: str) -> int:
    """A free port; the search begins where the seed says, so that runs with different ids seldom meet."""
    generator = random.Random(seed)  # noqa: S311  a spread of ports, not a secret
    for _ in range(1000):
        port = generator.randint(FIRST_PORT, LAST_PORT)
        if port_is_free(port):
            return port
    raise OSError(f"no free port between {FIRST_PORT} and {LAST_PORT}")
