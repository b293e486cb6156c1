"""This host: its GPUs from NVML, its cores and RAM from the kernel and the control groups."""

from __future__ import annotations

from launcher.host.detect import Host, detect_host

__all__ = ["Host", "detect_host"]
