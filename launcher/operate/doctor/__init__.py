"""Whether a job's nodes are fit to run on, found out before anything is queued.

types: what nodes say and what is found. facts, node: what runs on each node (python -m launcher.operate.doctor.node).
output: what the nodes said, read from their output. judge: what is wrong with it. here: the host that launches.
reach: how the nodes are asked, by Slurm, by ssh, or here. command: the way in. screen: what people see.
"""
