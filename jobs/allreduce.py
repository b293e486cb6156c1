"""A tiny all-reduce over every rank, for the check-up of nodes: python -m jobs.allreduce cpu|cuda, under torchrun.

The smallest thing that needs all of what a job needs of the network: the store, the process group and a collective.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=60)
NUM_ELEMENTS = 4 * 1024 * 1024
NUM_TIMED = 5


def main() -> None:
    """Reduce, check the sum, and say how fast it was."""
    on_gpu = sys.argv[1] == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ones = torch.ones(NUM_ELEMENTS, device=device)
    dist.all_reduce(ones)
    wrong = int((ones != world_size).sum())
    if wrong:
        raise RuntimeError(f"{wrong} of {NUM_ELEMENTS} elements are not the sum over {world_size} ranks")
    seconds = _timed(torch.ones(NUM_ELEMENTS, device=device), on_gpu=on_gpu)
    told = {
        "rank": rank,
        "host": socket.gethostname(),
        "backend": dist.get_backend(),
        "world_size": world_size,
        "size_bytes": ones.element_size() * NUM_ELEMENTS,
        "seconds": seconds,
    }
    sys.stdout.write(f"fitlaunch-doctor reduced {json.dumps(told)}\n")
    sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


def _timed(tensor: torch.Tensor, *, on_gpu: bool) -> float:
    """Seconds for one all-reduce, on average."""
    began_s = time.perf_counter()
    for _ in range(NUM_TIMED):
        dist.all_reduce(tensor)
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - began_s) / NUM_TIMED


if __name__ == "__main__":
    main()
