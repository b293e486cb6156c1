"""Which cells run at the same time: never two on a GPU, never more than the RAM holds, never nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.host.nvml import CardNow
from launcher.sweeps.slots import Need, Room, Seat, need_of, seat_for, threads_per_cell
from launcher.units import GIB
from tests.launching import CPU, H100, make_memory_plan, make_spec

ROOM = Room(num_cores=8, ram_bytes=32 * GIB)
IDLE = tuple(CardNow(name=str(number), free_bytes=80 * GIB) for number in range(4))


def cpu(num_ranks: int, ram_gib: int) -> Need:
    return Need(num_ranks=num_ranks, ram_bytes=ram_gib * GIB, gpu_bytes=None)


def gpu(num_ranks: int, *cards: str, gib: int = 40, ram_gib: int = 1) -> Need:
    return Need(num_ranks=num_ranks, ram_bytes=ram_gib * GIB, gpu_bytes=gib * GIB, cards=cards)


def seated(need: Need, *cards: str) -> Seat:
    return Seat(need=need, cards=cards)


def test_cpu_ranks_share_cores_and_ram() -> None:
    four = cpu(4, 8)
    assert seat_for(four, ROOM, [], ()) == seated(four)
    assert seat_for(four, ROOM, [seated(four)], ()) == seated(four)
    assert seat_for(four, ROOM, [seated(four)] * 2, ()) is None  # no core is left
    assert seat_for(cpu(1, 25), ROOM, [seated(four)], ()) is None  # no RAM is left
    assert seat_for(cpu(1, 24), ROOM, [seated(four)], ()) == seated(cpu(1, 24))


def test_a_cell_larger_than_the_host_runs_alone() -> None:
    huge = cpu(16, 100)
    assert seat_for(huge, ROOM, [], ()) == seated(huge)
    assert seat_for(cpu(1, 1), ROOM, [seated(huge)], ()) is None


def test_the_user_may_crowd_the_cores_but_not_the_ram() -> None:
    room = Room(num_cores=2, ram_bytes=32 * GIB, most=3)
    need = cpu(2, 8)
    assert seat_for(need, room, [seated(need)] * 2, ()) == seated(need)
    assert seat_for(need, room, [seated(need)] * 3, ()) is None
    assert seat_for(cpu(2, 17), room, [seated(need)] * 2, ()) is None


def test_gpus_are_given_to_one_cell_each() -> None:
    two = gpu(2)
    assert seat_for(two, ROOM, [], IDLE) == seated(two, "0", "1")
    assert seat_for(two, ROOM, [seated(two, "0", "1")], IDLE) == seated(two, "2", "3")
    assert seat_for(gpu(1), ROOM, [seated(two, "0", "1"), seated(two, "2", "3")], IDLE) is None
    assert seat_for(gpu(3), ROOM, [seated(two, "0", "1")], IDLE) is None


def test_gpus_that_others_use_are_left_to_them() -> None:
    cards = (CardNow(name="0", free_bytes=10 * GIB), *IDLE[1:])
    assert seat_for(gpu(2), ROOM, [], cards) == seated(gpu(2), "1", "2")
    # Nothing of ours runs and they hold too many: what a single job would do, where there is most room.
    busy = tuple(CardNow(name=str(number), free_bytes=number * GIB) for number in range(4))
    assert seat_for(gpu(2), ROOM, [], busy) == seated(gpu(2), "3", "2")
    assert seat_for(gpu(2), ROOM, [seated(gpu(1), "3")], busy) is None


def test_a_frozen_cell_waits_for_its_own_gpus() -> None:
    again = gpu(2, "2", "3")
    assert seat_for(again, ROOM, [seated(gpu(2), "0", "1")], IDLE) == seated(again, "2", "3")
    assert seat_for(again, ROOM, [seated(gpu(1), "2")], IDLE) is None


NEEDS = st.builds(
    lambda ranks, ram, on_gpu: gpu(ranks, ram_gib=ram) if on_gpu else cpu(ranks, ram),
    st.integers(1, 5), st.integers(0, 40), st.booleans(),
)  # fmt: skip


@given(st.lists(NEEDS, max_size=12), st.none() | st.integers(1, 5), st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_comes(needs: list[Need], most: int | None, data: st.DataObject) -> None:
    """Cells start in any order and end in any order; each that could run alone runs in the end."""
    room, taken, waiting = Room(num_cores=8, ram_bytes=32 * GIB, most=most), [], list(needs)
    while waiting or taken:
        started = False
        for need in list(waiting):
            seat = seat_for(need, room, taken, IDLE)
            if seat is not None:
                taken.append(seat)
                waiting.remove(need)
                started = True
        cards = [name for seat in taken for name in seat.cards]
        assert len(cards) == len(set(cards))
        assert len(taken) <= (most or len(needs))
        assert len(taken) == 1 or sum(seat.need.ram_bytes for seat in taken) <= room.ram_bytes
        if not taken:
            assert all(need.gpu_bytes is not None and need.num_ranks > len(IDLE) for need in waiting)
            return
        if taken and not started:
            taken.pop(data.draw(st.integers(0, len(taken) - 1)))


def test_threads_are_shared_by_the_cells_that_run_at_a_time() -> None:
    room = Room(num_cores=16, ram_bytes=GIB)
    assert threads_per_cell(cpu(2, 1), room, 64) == 2
    assert threads_per_cell(cpu(2, 1), room, 2) == 8
    assert threads_per_cell(cpu(2, 1), room, 1) == 16
    assert threads_per_cell(cpu(4, 1), Room(num_cores=16, ram_bytes=GIB, most=2), 64) == 8
    assert threads_per_cell(cpu(4, 1), Room(num_cores=2, ram_bytes=GIB), 64) == 4


def test_what_a_plan_needs_of_this_host() -> None:
    on_cpu, on_gpu = make_memory_plan(make_spec(device=CPU)), make_memory_plan(make_spec(device=H100))
    assert need_of(on_cpu) == Need(num_ranks=2, ram_bytes=2_000_000_000, gpu_bytes=None)
    assert need_of(on_gpu) == Need(num_ranks=2, ram_bytes=2_000_000_000, gpu_bytes=900_000_000)
