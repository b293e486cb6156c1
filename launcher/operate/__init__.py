"""What is done to a run wherever it runs: on this host, on a list of hosts, or on a Slurm cluster.

queue: the scheduler's word, asked for sparingly. follow: the logs of a run as they grow. cancel, resume: the same
command for every cluster. doctor: whether the nodes are fit to run on, before anything is queued.
"""
