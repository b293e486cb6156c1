"""Sweeps: many jobs composed by one command line, run side by side on this host or as arrays on a Slurm cluster."""
