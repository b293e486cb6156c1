"""Tests on a real Slurm and a real sshd, on a cluster of their own."""
