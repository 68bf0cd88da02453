"""sshgrid runs programs on many machines over SSH and nothing else."""
