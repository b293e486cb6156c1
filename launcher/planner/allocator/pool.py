"""Blocks of device memory, and the free ones that a stream can take from."""

from __future__ import annotations

from bisect import bisect_left, insort

from launcher.planner.allocator.rules import least_remainder_bytes, page_bytes


class Block:
    """A range of addresses: in use, free, or (mapped is False) only reserved as addresses, with no memory behind it.

    before, after: its neighbours in the same segment, whatever they are used for.
    """

    __slots__ = ("address", "after", "before", "free", "mapped", "pool", "size_bytes")

    def __init__(self, pool: Pool, address: int, size_bytes: int, *, mapped: bool = True) -> None:
        self.pool = pool
        self.address = address
        self.size_bytes = size_bytes
        self.free = not mapped
        self.mapped = mapped
        self.before: Block | None = None
        self.after: Block | None = None

    def follow(self, before: Block) -> None:
        """Stand right after `before`."""
        self.before, self.after = before, before.after
        if before.after is not None:
            before.after.before = self
        before.after = self


class Pool:
    """The small or the large blocks of one stream: what is freed there is reused there and nowhere else.

    free: mapped blocks by size, then address. unmapped: by address.
    """

    __slots__ = ("free", "least_remainder_bytes", "page_bytes", "unmapped")

    def __init__(self, small: bool, expandable: bool) -> None:
        self.page_bytes = page_bytes(small)
        self.least_remainder_bytes = least_remainder_bytes(small, expandable)
        self.free: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []

    def insert(self, block: Block) -> None:
        """Put a block among the free (or, when it has no memory, the unmapped) ones."""
        block.free = True
        if block.mapped:
            insort(self.free, (block.size_bytes, block.address, block))
        else:
            insort(self.unmapped, (block.address, block))

    def remove(self, block: Block) -> None:
        """Take the block out again. It must be inserted."""
        block.free = False
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size_bytes, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]

    def split(self, block: Block, size_bytes: int) -> None:
        """Cut a block that is in use down to size_bytes, if what is left over is worth a block of its own."""
        remainder_bytes = block.size_bytes - size_bytes
        if remainder_bytes >= self.least_remainder_bytes:
            block.size_bytes = size_bytes
            rest = Block(self, block.address + size_bytes, remainder_bytes)
            rest.follow(block)
            self.insert(rest)

    def merge(self, block: Block) -> None:
        """Join a block that is in no list to its neighbours of the same kind: try_merge_blocks."""
        before = block.before
        if before is not None and before.free and before.mapped == block.mapped:
            self.remove(before)
            block.address = before.address
            block.size_bytes += before.size_bytes
            block.before = before.before
            if before.before is not None:
                before.before.after = block
        after = block.after
        if after is not None and after.free and after.mapped == block.mapped:
            self.remove(after)
            block.size_bytes += after.size_bytes
            block.after = after.after
            if after.after is not None:
                after.after.before = block
