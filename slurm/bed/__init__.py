"""A Slurm cluster of several nodes on one Linux machine: real daemons, real ssh, fake GPUs, and faults as commands.

    sudo python -m slurm.bed up 3
    sudo python -m slurm.bed exec sinfo
    sudo python -m slurm.bed down

Everything lives in namespaces below one process, so that nothing of the host changes and nothing is left behind.
"""

from slurm.bed.bed import Bed
from slurm.bed.errors import BedError
from slurm.bed.settings import BedSettings

__all__ = ["Bed", "BedError", "BedSettings"]
