"""FSDP2 on the tape: what is gathered before a block and reduced after it, each on the stream it is allocated on.

Source: torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_collectives.py.
"""

from __future__ import annotations

from launcher.planner.inventory import Block
from launcher.planner.sharding import rows
from launcher.planner.stream.block import Run
from launcher.planner.stream.tape import Storage

ALL_GATHER_STREAM, REDUCE_SCATTER_STREAM = 1, 2


class Groups:
    """The groups of one job: what is whole at the moment, and the gradients that are reduced."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.whole: dict[str, list[Storage]] = {}
        self.in_flight: dict[str, Storage] = {}
        self.held_for_copy: Storage | None = None
        self.reduce_input: Storage | None = None
        self.reduced: dict[str, Storage] = {}

    def gather(self, name: str, block: Block, *, forward: bool) -> None:
        """Wait for a group: copy its parameters out of the flat buffer. Forward, that buffer stays until the next
        group is copied out; backward it goes at once."""
        if name in self.whole:
            return
        self.prefetch(name, block)
        buffer = self.in_flight.pop(name)
        work = self.run.work
        self.whole[name] = [
            self.run.tape.storage(
                rows.padded_numel(p.shape, work.world_size) * work.world_size * work.gathered_bytes(p.state)
            )
            for p in block.parameters
        ]
        self.held_for_copy = buffer if forward else None

    def prefetch(self, name: str, block: Block) -> None:
        """Start to gather a group."""
        if name in self.whole or name in self.in_flight:
            return
        size_bytes = rows.gathered_bytes(self.run.work, block)
        self.in_flight[name] = self.run.tape.storage(size_bytes, stream=ALL_GATHER_STREAM)

    def release(self, name: str) -> None:
        """Free a group's whole parameters."""
        self.whole.pop(name, None)

    def reduce(self, name: str, block: Block, prefix: str) -> None:
        """Pack a group's gradients for the reduce-scatter, whose input stays until the next one starts."""
        work, tape = self.run.work, self.run.tape
        numel = rows.reduced_numel(work, block)
        self.release(name)
        if not numel:
            return
        packed = tape.storage(numel * rows.reduce_bytes(work))
        for parameter in [key for key in self.run.gradients if key.startswith(prefix)]:
            del self.run.gradients[parameter]
        self.reduce_input = packed
        sharded = tape.storage(numel // work.world_size * rows.reduce_bytes(work), stream=REDUCE_SCATTER_STREAM)
        self.reduced.setdefault(name, sharded)

    def finish(self) -> None:
        """The end of a backward pass."""
        self.reduce_input = None
        self.held_for_copy = None
        self.in_flight.clear()
