"""A MemoryPlan for people: where the bytes go, against which card, how sure, and what to do if it does not fit."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.planner.types import (
    DiskTerm,
    HostTerm,
    MemoryPlan,
    Phase,
    RankPlan,
    Suggestion,
    Term,
    TermKind,
    Verdict,
)
from launcher.report.bar import capacity_bar, capacity_cells, share_bar
from launcher.report.console import columns, draws_blocks, heading, indented, show
from launcher.report.describe import (
    batch_words,
    job_words,
    model_words,
    phase_words,
    plural,
    rank_range_words,
)
from launcher.report.totals import bytes_by_kind
from launcher.units import GIB, MIB, format_bytes

# With brackets and key, 77 columns: a terminal of 80 shows it in one line.
BAR_WIDTH = 44
# What all phases take beside each other, by kind. A narrower terminal gets two tables, for a cut number is a wrong one.
PHASES_WIDTH = 104
# On one line of 80 columns there is no room for the first step, which needs no more than a later one.
ONE_LINE = tuple(phase for phase in Phase if phase is not Phase.FIRST_STEP)
LEAST_NOTE_WIDTH = 24
VERDICT_STYLE = {
    Verdict.FITS: "green",
    Verdict.TOO_CLOSE: "yellow",
    Verdict.DOES_NOT_FIT: "red",
    Verdict.NO_CARD: "cyan",
}


def show_plan(plan: MemoryPlan, console: Console, *, explain: bool = False) -> None:
    """The plan on one screen; with `explain`, every term with its formula and source as well."""
    show(console, *_header(plan))
    _show_bytes(plan, console)
    _show_phases(plan, console, explain=explain)
    _show_beside(plan, console)
    if explain:
        _show_terms(plan, console)
    _show_verdict(plan, console)
    show_suggestions(plan.suggestions, console)


def _header(plan: MemoryPlan) -> tuple[Text, Text, Text]:
    return (
        Text(model_words(plan.spec), style="bold"),
        Text(job_words(plan.spec)),
        Text(batch_words(plan.spec), style="dim"),
    )


# Where the bytes go


def outside_words(plan: MemoryPlan) -> str:
    """What the process holds beside the allocator."""
    return TermKind.OUTSIDE.value if plan.spec.device.kind == "cuda" else "interpreter and libraries"


def unused_reserve_bytes(plan: MemoryPlan) -> int:
    """What the caching allocator holds without using it, at the worst rank's peak."""
    return plan.reserved_bytes - plan.allocated_bytes


def _show_bytes(plan: MemoryPlan, console: Console) -> None:
    rank = plan.worst_rank
    where = f"{rank_range_words(rank.ranks)} at the peak, which is in {rank.peak_phase.value}"
    show(console, heading("Where the bytes go", where))
    rows = [(kind.value, size_bytes, "") for kind, size_bytes in bytes_by_kind(rank, rank.peak_phase).items()]
    rows.append(("allocated", rank.allocated_bytes, "bold"))
    if unused_reserve_bytes(plan) > 0:
        rows.append(("reserved, not allocated", unused_reserve_bytes(plan), ""))
    if rank.outside_bytes:
        rows.append((outside_words(plan), rank.outside_bytes, ""))
    rows.append(("whole process", plan.process_bytes, "bold"))
    blocks = draws_blocks(console)
    table = columns("lrrl")
    for name, size_bytes, style in rows:
        table.add_row(
            Text(name, style=style),
            Text(format_bytes(size_bytes), style=style),
            Text(share_words(size_bytes, plan.process_bytes), style=style),
            Text() if style else share_bar(size_bytes, plan.process_bytes, 24, blocks=blocks),
        )
    show(console, indented(table))


def share_words(part: int, whole: int) -> str:
    """A share in per cent; '<0.1 %' for something that would round to nothing."""
    share = 100 * part / whole if whole else 0.0
    return "<0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"


# Phases


def common_unit(sizes: Iterable[int]) -> tuple[str, int]:
    """One unit for numbers that are compared: GiB when the largest has one, MiB below."""
    return ("GiB", GIB) if max(sizes, default=0) >= GIB else ("MiB", MIB)


def _show_phases(plan: MemoryPlan, console: Console, *, explain: bool) -> None:
    rank = plan.worst_rank
    unit, unit_bytes = common_unit(rank.allocated_bytes_in(phase) for phase in Phase)
    show(console, heading("Allocated in each phase", f"{rank_range_words(rank.ranks)}, {unit}"))
    if explain:
        narrow = console.is_terminal and console.width < PHASES_WIDTH
        half = (len(Phase) + 1) // 2
        for phases in (tuple(Phase)[:half], tuple(Phase)[half:]) if narrow else (tuple(Phase),):
            show(console, indented(_kinds_by_phase(rank, phases, unit_bytes)))
    else:
        table = columns("r" * len(ONE_LINE), ONE_LINE)
        table.add_row(*_peak_cells(rank, ONE_LINE, unit_bytes))
        show(console, indented(table))
    if len(plan.ranks) > 1:
        classes = columns("lrl")
        for other in plan.ranks:
            classes.add_row(
                rank_range_words(other.ranks),
                format_bytes(other.allocated_bytes + other.outside_bytes),
                f"peak in {other.peak_phase.value}",
            )
        show(console, heading("Ranks differ", f"allocated, with {outside_words(plan)}"), indented(classes))


def _kinds_by_phase(rank: RankPlan, phases: Sequence[Phase], unit_bytes: int) -> Table:
    by_kind = [bytes_by_kind(rank, phase) for phase in phases]
    table = columns("l" + "r" * len(phases), ("", *phases))
    for kind in TermKind:
        if any(kind in bytes_by_kind(rank, phase) for phase in Phase):
            table.add_row(kind.value, *(unit_words(sizes.get(kind, 0), unit_bytes) for sizes in by_kind))
    table.add_row(Text("allocated", style="bold"), *_peak_cells(rank, phases, unit_bytes))
    return table


def _peak_cells(rank: RankPlan, phases: Sequence[Phase], unit_bytes: int) -> list[Text]:
    """What is allocated in each phase; the highest stands out."""
    return [
        Text(unit_words(rank.allocated_bytes_in(phase), unit_bytes), style="bold" if phase is rank.peak_phase else "")
        for phase in phases
    ]


def unit_words(size_bytes: int, unit_bytes: int) -> str:
    """A size in the table's unit; '-' for nothing, and never 0 for something."""
    digits = 2 if unit_bytes == GIB else 1
    if size_bytes == 0:
        return "-"
    least = 10.0**-digits
    return f"<{least}" if size_bytes < unit_bytes * least / 2 else f"{size_bytes / unit_bytes:.{digits}f}"


# Beside the allocator, and what each rank is made of


def _show_beside(plan: MemoryPlan, console: Console) -> None:
    where = "GPU" if plan.spec.device.kind == "cuda" else "rank"
    table = columns("lrw")
    table.add_row(f"process on each {where}", format_bytes(plan.process_bytes), interval_words(plan))
    if plan.spec.device.kind == "cuda":
        reserved = "by the caching allocator"
        table.add_row("reserved", format_bytes(plan.reserved_bytes), reserved)
        table.add_row("least capacity", format_bytes(plan.least_capacity_bytes), "of a card that would survive")
    table.add_row("host RAM per node", format_bytes(plan.host_ram_bytes_per_node), _ranks_per_node(plan))
    table.add_row("each checkpoint", format_bytes(plan.checkpoint_bytes), "on disk, all ranks together")
    table.add_row("the result", format_bytes(plan.result_bytes), "on disk")
    show(console, heading("What it takes"), indented(table))


def _ranks_per_node(plan: MemoryPlan) -> str:
    return f"for {plural(plan.spec.gpus_per_node, 'rank')}"


def interval_words(plan: MemoryPlan) -> str:
    """How sure the plan is, in a phrase."""
    low, high = format_bytes(plan.process_low_bytes), format_bytes(plan.process_high_bytes)
    return f"between {low} and {high} ({plan.instrument})"


def _show_terms(plan: MemoryPlan, console: Console) -> None:
    """Every term of the first class of ranks; of the others, what they have that it has not, and the reverse."""
    first = plan.ranks[0]
    show(console, heading("Every term", rank_range_words(first.ranks)), *_terms(first.terms))
    for rank in plan.ranks[1:]:
        others, mine = set(first.terms) - set(rank.terms), set(rank.terms) - set(first.terms)
        absent = ", ".join(term.name for term in first.terms if term in others)
        detail = (
            f"as {rank_range_words(first.ranks)}"
            + (f", without {absent}" if absent else "")
            + (", but" if mine else "")
        )
        show(console, heading(f"Terms of {rank_range_words(rank.ranks)}", detail))
        show(console, *_terms(term for term in rank.terms if term in mine))
    nodes = " of the first node" if plan.spec.nodes > 1 else ""
    for title, terms in (
        (f"Host RAM{nodes}", plan.host_terms),
        ("Each checkpoint", plan.checkpoint_terms),
        ("The result", plan.result_terms),
    ):
        if terms:
            show(console, heading(title), *(made for term in terms for made in _beside(term)))


def _terms(terms: Iterable[Term]) -> Iterator[RenderableType]:
    """Terms by kind, the largest first, each with its formula, source and phases."""
    order = list(TermKind)
    for term in sorted(terms, key=lambda t: (order.index(t.kind), -t.size_bytes)):
        title = Text.assemble((f"{term.kind.value}: {term.name}", "bold"), f"  {format_bytes(term.size_bytes)}")
        table = columns("lw")
        table.add_row(Text("formula", style="dim"), f"{term.formula} = {term.size_bytes:,} B")
        table.add_row(Text("source", style="dim"), term.source)
        table.add_row(Text("alive in", style="dim"), phase_words(term.phases))
        yield indented(title)
        yield indented(indented(table))


def _beside(term: HostTerm | DiskTerm) -> Iterator[RenderableType]:
    """A term outside the devices, with its formula and source."""
    table = columns("lw")
    table.add_row(Text("formula", style="dim"), f"{term.formula} = {term.size_bytes:,} B")
    table.add_row(Text("source", style="dim"), term.source)
    if isinstance(term, HostTerm):
        table.add_row(Text("held in", style="dim"), ", ".join(moment.value for moment in term.moments))
    yield indented(Text.assemble((term.name, "bold"), f"  {format_bytes(term.size_bytes)}"))
    yield indented(indented(table))


# Verdict and ways out


def verdict_words(plan: MemoryPlan) -> str:
    """The verdict in one sentence, with its margin."""
    card = plan.spec.device.name if plan.spec.device.kind == "cuda" else "the host RAM of one rank"
    if plan.capacity_bytes is None:
        if plan.smallest_card is None:
            return "No card is named, and no listed card holds this."
        return f"No card is named; the smallest listed one that holds this is {plan.smallest_card}."
    capacity = format_bytes(plan.capacity_bytes)
    spare = plan.capacity_bytes - plan.process_high_bytes
    excess = plan.process_low_bytes - plan.capacity_bytes
    if plan.verdict is Verdict.FITS:
        return f"Fits {card}: of {capacity}, {format_bytes(spare)} stay free even at the high end of the interval."
    if plan.verdict is Verdict.TOO_CLOSE:
        return f"Too close to call on {card}: its {capacity} lie inside the interval."
    if excess > 0:
        return (
            f"Does not fit {card}: {format_bytes(excess)} more than its {capacity} even at the low end of the interval."
        )
    short = plan.least_capacity_bytes - plan.capacity_bytes
    return f"Does not fit {card}: its {capacity} are {format_bytes(short)} short of the least capacity."


def _show_verdict(plan: MemoryPlan, console: Console) -> None:
    style = VERDICT_STYLE[plan.verdict]
    show(console, Text())
    if plan.capacity_bytes is not None:
        cells = capacity_cells(plan.process_low_bytes, plan.process_high_bytes, plan.capacity_bytes, BAR_WIDTH)
        blocks = draws_blocks(console)
        key = "█ needed  ▒ uncertain  · free" if blocks else "# needed  ~ uncertain  . free"
        show(console, Text.assemble(capacity_bar(cells, blocks=blocks, style=style), "  ", (key, "dim")))
    show(console, Text(verdict_words(plan), style=f"bold {style}"))
    if plan.verdict is Verdict.DOES_NOT_FIT and plan.smallest_card is not None:
        show(console, Text(f"As it is, it would fit {plan.smallest_card}."))


def show_suggestions(suggestions: Sequence[Suggestion], console: Console) -> None:
    """Those that train the same first. A narrow terminal folds commands between their words, and notes."""
    same = [suggestion for suggestion in suggestions if not suggestion.changes_training]
    other = [suggestion for suggestion in suggestions if suggestion.changes_training]
    for group, effect in ((same, "the same training"), (other, "another training")):
        if not group:
            continue
        table = columns("wrrw", ("", "process", "time, about", ""))
        if console.is_terminal:
            table.columns[0].width = command_width(group, console.width)
        for suggestion in group:
            command = Text(shlex.join(suggestion.overrides), style="bold")
            time = ratio_words(suggestion.time_ratio)
            table.add_row(command, format_bytes(suggestion.process_bytes), time, suggestion.note)
        detail = f"{effect}, its time estimated; add to the command line"
        show(console, heading("What would fit", detail), indented(table))


def ratio_words(ratio: float) -> str:
    """An estimated time beside another: '1.3x', 'same', '12x'. It is not known better than to a tenth."""
    if 0.95 <= ratio < 1.05:
        return "same"
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{max(ratio, 0.1):.1f}x"


def command_width(suggestions: Sequence[Suggestion], num_columns: int) -> int:
    """Columns for the commands: all they need, if that leaves some for the notes, and never less than a word."""
    commands = [shlex.join(suggestion.overrides) for suggestion in suggestions]
    longest_word = max(len(word) for command in commands for word in command.split())
    note = min(max(len(suggestion.note) for suggestion in suggestions), LEAST_NOTE_WIDTH)
    beside = len("  " + "  1023.99 GiB  " + "time, about  ") + note
    return min(max(map(len, commands)), max(longest_word, num_columns - beside))
