"""Whether a job's nodes are fit to run on, found out before anything is queued.

types: what nodes say and what is found. facts, node: what runs on each node (python -m launcher.operate.doctor.node).
output: what the nodes said, read from their output. judge: what is wrong with it. here: the host that launches.
slurm, hosts, local: how the nodes are reached. command: the way in.
"""
