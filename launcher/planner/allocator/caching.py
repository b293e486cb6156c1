"""PyTorch's CUDA caching allocator without a GPU: where each block goes, and what that reserves from the driver.

Source: torch 2.13, c10/cuda/CUDACachingAllocator.cpp, DeviceCachingAllocator, with every option at its default but
expandable_segments. Left out, because a stream of allocations does not tell it: private pools of CUDA graphs, and the
delay of a free until other streams are done with a block (record_stream).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left

from launcher.planner.allocator.pool import Block, Pool
from launcher.planner.allocator.rules import LARGE_SEGMENT_BYTES, block_bytes, is_small, segment_bytes
from launcher.units import round_up

# The addresses of an expandable segment: whole pages, and far above any device, where PyTorch reserves 9/8 of the
# device's memory and begins another segment once they are used up.
ADDRESS_SPACE_BYTES = LARGE_SEGMENT_BYTES << 40


class CachingAllocator(ABC):
    """One device's allocator. capacity_bytes: all that it may reserve; None is without limit.

    allocated_bytes counts whole blocks, as torch.cuda.memory_allocated does; reserved_bytes is what the driver gave.
    """

    expandable: bool

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self.num_retries = 0
        self.pools: dict[tuple[int, bool], Pool] = {}
        self._next_address = 0

    def allocate(self, size_bytes: int, stream: int = 0) -> Block | None:
        """Hand out a block for size_bytes as asked for; None where memory runs out even with the cache emptied."""
        size_bytes = block_bytes(size_bytes)
        key = (stream, is_small(size_bytes))
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = Pool(key[1], self.expandable)
        block = self._best_fit(pool, size_bytes) or self._grow(pool, size_bytes)
        if block is None:
            self.empty_cache()
            self.num_retries += 1
            block = self._grow(pool, size_bytes)
            if block is None:
                return None
        pool.split(block, size_bytes)
        self.allocated_bytes += block.size_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def free(self, block: Block) -> None:
        """Take a block back into its pool, joined to its free neighbours."""
        self.allocated_bytes -= block.size_bytes
        block.pool.merge(block)
        block.pool.insert(block)

    def reset_peaks(self) -> None:
        """Let the peaks begin anew at what stands now."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    @abstractmethod
    def empty_cache(self) -> None:
        """Return to the driver whatever can be returned: torch.cuda.empty_cache()."""

    @abstractmethod
    def _grow(self, pool: Pool, size_bytes: int) -> Block | None:
        """A block of at least size_bytes from new memory, in no list; None where the driver has no more."""

    @abstractmethod
    def _best_fit(self, pool: Pool, size_bytes: int) -> Block | None:
        """The cached block that a request takes, removed from its list; None where none is big enough."""

    def _reserve(self, size_bytes: int) -> bool:
        """Whether the driver has size_bytes more; they are then reserved."""
        if self.capacity_bytes is not None and self.reserved_bytes + size_bytes > self.capacity_bytes:
            return False
        self.reserved_bytes += size_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return True

    def _addresses(self, size_bytes: int) -> int:
        """The beginning of a range of addresses never used before."""
        address, self._next_address = self._next_address, self._next_address + size_bytes
        return address


class FixedSegments(CachingAllocator):
    """PyTorch's default: one cudaMalloc a segment, which goes back whole or not at all."""

    expandable = False

    def empty_cache(self) -> None:
        for pool in self.pools.values():
            for _, _, block in pool.free.copy():
                if block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.size_bytes

    def _grow(self, pool: Pool, size_bytes: int) -> Block | None:
        size_bytes = segment_bytes(size_bytes)
        return Block(pool, self._addresses(size_bytes), size_bytes) if self._reserve(size_bytes) else None

    def _best_fit(self, pool: Pool, size_bytes: int) -> Block | None:
        """The smallest that is big enough; of equals, the lowest address."""
        at = bisect_left(pool.free, (size_bytes,))
        if at == len(pool.free):
            return None
        block = pool.free.pop(at)[2]
        block.free = False
        return block


class ExpandableSegments(CachingAllocator):
    """expandable_segments:True: one segment a pool, which grows and shrinks by pages of 2 or 20 MiB."""

    expandable = True

    def empty_cache(self) -> None:
        for pool in self.pools.values():
            for _, _, block in pool.free.copy():
                self._unmap(pool, block)

    def _best_fit(self, pool: Pool, size_bytes: int) -> Block | None:
        """The first big enough of those sorted by size, but a block that can still grow gives way to ones that cannot.

        For the comparison a block counts with the unmapped addresses right after it.
        """
        free = pool.free
        at = bisect_left(free, (size_bytes,))
        if at == len(free):
            return None
        while at + 1 < len(free) and _growable_bytes(free[at + 1][2]) < _growable_bytes(free[at][2]):
            at += 1
        block = free.pop(at)[2]
        block.free = False
        return block

    def _grow(self, pool: Pool, size_bytes: int) -> Block | None:
        """Map pages at the lowest addresses where free and unmapped blocks make room: try_allocate_expandable_block."""
        block = self._room(pool, size_bytes)
        if not block.mapped and not self._map(pool, block, min(block.size_bytes, size_bytes)):
            return None
        while block.size_bytes < size_bytes:
            after = block.after
            assert after is not None
            assert not after.mapped
            if not self._map(pool, after, min(size_bytes - block.size_bytes, after.size_bytes)):
                return None
            block = after
        pool.remove(block)
        return block

    def _room(self, pool: Pool, size_bytes: int) -> Block:
        """The first of a run of free or unmapped blocks with room for size_bytes: find_expandable_block."""
        for _, unmapped in pool.unmapped:
            before = unmapped.before
            first = before if before is not None and before.free else unmapped
            room_bytes, block = 0, first
            while block.free:
                room_bytes += block.size_bytes
                if room_bytes >= size_bytes:
                    return first
                if block.after is None:
                    break
                block = block.after
        segment = Block(pool, self._addresses(ADDRESS_SPACE_BYTES), ADDRESS_SPACE_BYTES, mapped=False)
        pool.insert(segment)
        return segment

    def _map(self, pool: Pool, block: Block, size_bytes: int) -> bool:
        """Put memory behind the first size_bytes of an unmapped block, in whole pages, all or nothing: map_block."""
        mapped_bytes = round_up(size_bytes, pool.page_bytes)
        if not self._reserve(mapped_bytes):
            return False
        pool.remove(block)
        block.mapped = True
        if mapped_bytes < block.size_bytes:
            rest = Block(pool, block.address + mapped_bytes, block.size_bytes - mapped_bytes, mapped=False)
            rest.follow(block)
            pool.insert(rest)
            block.size_bytes = mapped_bytes
        pool.merge(block)
        pool.insert(block)
        return True

    def _unmap(self, pool: Pool, block: Block) -> None:
        """Give back the whole pages inside a free block: unmap_block."""
        page_bytes = pool.page_bytes
        end = block.address + block.size_bytes
        first_page = round_up(block.address, page_bytes)
        last_page = end // page_bytes * page_bytes
        if first_page >= last_page:
            return
        pool.remove(block)
        self.reserved_bytes -= last_page - first_page
        unmapped = block
        if first_page > block.address:
            unmapped = Block(pool, first_page, end - first_page)
            unmapped.follow(block)
            block.size_bytes = first_page - block.address
            pool.insert(block)
        if last_page < end:
            rest = Block(pool, last_page, end - last_page)
            rest.follow(unmapped)
            pool.insert(rest)
        unmapped.size_bytes = last_page - first_page
        unmapped.mapped = False
        pool.merge(unmapped)
        pool.insert(unmapped)


def _growable_bytes(block: Block) -> int:
    after = block.after
    return block.size_bytes + (after.size_bytes if after is not None and not after.mapped else 0)
