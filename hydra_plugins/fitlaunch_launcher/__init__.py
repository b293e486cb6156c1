"""The sweep launcher: every cell is prepared before any of them starts."""
