"""Bytes and times for people. Inside the program bytes are ints and seconds are floats."""

from __future__ import annotations

KIB = 1024
MIB = 1024**2
GIB = 1024**3


def ceil_div(numerator: int, denominator: int) -> int:
    """Divide integers, rounding up."""
    return -(-numerator // denominator)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return ceil_div(value, multiple) * multiple


def format_bytes(num_bytes: int) -> str:
    """Bytes as a person reads them: '512 B', '3.2 MiB', '17.84 GiB'."""
    magnitude = abs(num_bytes)
    if magnitude < KIB:
        return f"{num_bytes} B"
    if magnitude < MIB:
        return f"{num_bytes / KIB:.1f} KiB"
    if magnitude < GIB:
        return f"{num_bytes / MIB:.1f} MiB"
    return f"{num_bytes / GIB:.2f} GiB"


def format_count(count: int) -> str:
    """A parameter count as a person reads it: '134.5M', '8.03B'."""
    if count < 1_000_000:
        return f"{count:,}"
    if count < 1_000_000_000:
        return f"{count / 1e6:.1f}M"
    return f"{count / 1e9:.2f}B"


def format_duration(duration_s: float) -> str:
    """Seconds as a person reads them: '8.2 s', '3 min 05 s', '2 h 14 min'."""
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
