"""Ask Slurm by its own commands, without accounting: what answers, what refuses and what is silent are told apart."""
