"""A LaunchPlan for people: the command, what it adds to the environment, and the files it writes."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.text import Text

from launcher.render.types import LaunchPlan
from launcher.report.console import columns, heading, indented, show
from launcher.units import format_bytes


def show_launch(launch: LaunchPlan, console: Console) -> None:
    """Exactly what would be started. The command is quoted for reading; what runs is the tuple."""
    if launch.submit:
        submit = shlex.join((*launch.submit, "1"))
        show(console, heading("Queue it", "1 counts its submissions"), indented(Text(submit)))
    show(console, heading("Command", "on every node" if launch.submit else ""), indented(Text(shlex.join(launch.argv))))
    if launch.env:
        table = columns("lw")
        for name, value in sorted(launch.env.items()):
            table.add_row(Text(name, style="bold"), value)
        show(console, heading("Environment", "beside the launcher's own"), indented(table))
    table = columns("lr")
    for path, text in sorted(launch.files.items()):
        table.add_row(Text(path, style="bold"), format_bytes(len(text.encode())))
    show(console, heading("Files", f"in {launch.run_dir}"), indented(table))
    show(console, heading("Plan hash"), indented(Text(launch.hash)))
