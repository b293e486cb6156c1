"""What the words of an error mean. The words are those of torch 2.13, NCCL 2.29, gloo, Python and Slurm."""

from __future__ import annotations

import re

from launcher.runs.diagnosis.types import Kind


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


# The first that matches counts, so what is special stands before what is general: a collective that fails for want of
# GPU memory is not a victim, and a full /dev/shm is no full disk.
SIGNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (Kind.START_REFUSED, _any(r"\b(StartRefused|ResumeRefused|Superseded)\b")),
    (
        Kind.KERNEL_OUT_OF_MEMORY,
        _any(
            r"oom[-_]kill event", r"Memory cgroup out of memory", r"Out of memory: Killed process", r": Out Of Memory$"
        ),
    ),
    (
        Kind.CUDA_OUT_OF_MEMORY,
        _any(
            r"CUDA out of memory",
            r"CUDA error: out of memory",
            r"Cuda failure \d* ?'out of memory'",
            r"CUBLAS_STATUS_ALLOC_FAILED",
            r"^(torch\.)?(cuda\.)?OutOfMemoryError\b",
        ),
    ),
    (
        Kind.SHARED_MEMORY_FULL,
        _any(
            r"segment /dev/shm\S* .*No space left",
            r"No space left on device.*(/dev/shm|/torch_)",
            r"insufficient shared memory",
            r"out of shared memory",
            r"unable to (allocate|open|resize|mmap).{0,20}shared memory",
            r"[Ee]rror while creating shared memory segment",
            r"Fatal Python error: Bus error",
        ),
    ),
    (
        Kind.HOST_OUT_OF_MEMORY,
        _any(r"can't allocate memory", r"Cannot allocate memory", r"^MemoryError\b", r"std::bad_alloc"),
    ),
    (
        Kind.DISK_FULL,
        _any(
            r"No space left on device",
            r"Disk quota exceeded",
            r"PytorchStreamWriter failed writing",
            r"unexpected pos \d+ vs \d+",
        ),
    ),
    (
        Kind.HUB_UNREACHABLE,
        _any(r"couldn't connect to 'https://", r"Can't load .* for '", r"outgoing traffic has been disabled"),
    ),
    (
        Kind.IMPORT_ERROR,
        _any(
            r"\b(ModuleNotFoundError|ImportError)\b",
            r"\bNo module named\b",
            r"cannot import name",
            r"undefined symbol",
            r"cannot open shared object file",
            r"version `\S+' not found",
        ),
    ),
    (
        Kind.RENDEZVOUS,
        _any(
            r"Rendezvous(Timeout|Connection|Closed)Error",
            r"connection to the C10d store has failed",
            r"Timed out after \d+ seconds waiting for (clients|workers)",
            r"client socket has timed out after",
        ),
    ),
    (Kind.PORT_TAKEN, _any(r"EADDRINUSE", r"[Aa]ddress already in use")),
    (
        Kind.GPU_FAULT,
        _any(
            r"CUDA error: (?!out of memory)",
            r"uncorrectable ECC",
            r"fallen off the bus",
            r"CUDNN_STATUS_(EXECUTION|INTERNAL)",
            r"CUBLAS_STATUS_(EXECUTION|INTERNAL)",
            r"Cuda failure \d* ?'(?!out of memory)",
        ),
    ),
    (
        Kind.COLLECTIVE_TIMEOUT,
        _any(
            r"Watchdog caught collective operation timeout",
            r"Timed out waiting \d+ms for (recv|send) operation",
            r"failed to pass monitoredBarrier",
            r"wait timeout after \d+ms",
        ),
    ),
    (
        Kind.CONNECTION_LOST,
        _any(
            r"Connection closed by (remote )?peer",
            r"(Read|Write) error \[\S+\]:\d+",
            r"gloo/transport/tcp\S* .*(closed|reset|refused|[Bb]roken)",
            r"remote process exited or there was a network error",
            r"ncclRemoteError",
            r"NCCL communicator was aborted",
            r"\bDist(Network|Store|Backend)Error\b",
            r"failed to recv, got 0 bytes",
            r"TCPStore.*([Bb]roken pipe|Connection (was )?(reset|closed|refused))",
            r"recvValue failed|sendBytes failed",
        ),
    ),
    (Kind.FILE_MISSING, _any(r"\bFileNotFoundError\b", r"No such file or directory")),
)


def recognise(error_type: str, message: str) -> Kind | None:
    """What an exception means, from its type and its words; None for one that only speaks for itself."""
    return recognise_text(f"{error_type}: {message}")


def recognise_text(text: str) -> Kind | None:
    """What a text that ends in an error means: a message, or the end of a log."""
    return next((kind for kind, pattern in SIGNS if pattern.search(text)), None)


def recognise_log(lines: tuple[str, ...]) -> Kind | None:
    """What the end of a log means: its last line that means anything. torchrun's ranks mark theirs with [rank3]:."""
    for line in reversed(lines):
        kind = recognise_text(re.sub(r"^\[rank\d+\]: ?", "", line))
        if kind is not None:
            return kind
    return None
