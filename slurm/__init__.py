"""What belongs to Slurm and is no part of the installed package: examples, and a cluster to try things on."""
