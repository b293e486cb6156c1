"""What NCCL holds on a device, from its own source: buffers for each channel and each neighbour on it.

NCCL 2.29 (torch 2.13 pins 2.29.7; the sizes are the same in 2.28.9 and 2.30.7): src/init.cc computeBuffSizes,
src/include/device.h, src/transport/p2p.cc p2pSendSetup and p2pRecvSetup, src/transport/nvls.cc ncclNvlsBufferSetup.
Connections are made when a collective first wants them (NCCL_RUNTIME_CONNECT, on since 2.22), so what no collective of
a job uses is not counted: no send and receive, no buffers shared with the network.
"""

from __future__ import annotations

from launcher.units import KIB, MIB, round_up

STEPS = 8  # NCCL_STEPS
LL_BYTES = 8 * 512 * STEPS * 16  # lines a thread x threads x steps x 16 B
LL128_BYTES = 120 * 640 * STEPS * 8  # elements a thread x threads x steps x 8 B
SIMPLE_BYTES = 4 * MIB  # NCCL_BUFFSIZE
FLAGS_BYTES = 4 * KIB  # ncclSendMem, ncclRecvMem
ALIGNMENT = 2 * MIB  # CUDA_IPC_MIN
NVLS_CHUNK_BYTES = 128 * KIB  # NCCL_NVLS_CHUNKSIZE
NVLS_MIN_RANKS = 3  # ncclNvlsInit


def connection_bytes() -> int:
    """One neighbour of one channel: a buffer of each protocol to receive in, and the flags to send with.

    With NVLink between Ampere cards the SIMPLE buffer is on the sender's side: 6 + 6 instead of 10 + 2 MiB.
    """
    received = round_up(LL_BYTES + LL128_BYTES + SIMPLE_BYTES + FLAGS_BYTES, ALIGNMENT)
    return received + round_up(FLAGS_BYTES, ALIGNMENT)


def ring_bytes(num_channels: int) -> int:
    """A ring: it receives from one neighbour and sends to the other."""
    return num_channels * connection_bytes()


def tree_bytes(num_channels: int, num_ranks: int) -> int:
    """The tree of small all-reduces: inside a node a chain, in which a middle rank sends to and receives from both
    neighbours, and the ring has one half of that already. Of two ranks the ring has all."""
    return num_channels * connection_bytes() if num_ranks > 2 else 0


def nvls_bytes(num_channels: int, num_ranks: int) -> int:
    """The switch's reductions: for each channel and each rank of the node one buffer up and one down."""
    if num_ranks < NVLS_MIN_RANKS:
        return 0
    return num_channels * 2 * NVLS_CHUNK_BYTES * STEPS * num_ranks
