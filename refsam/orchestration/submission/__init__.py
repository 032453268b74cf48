"""Giving runs to Slurm or to this machine, staying with them, and running them again."""
