"""Sweeps under faults on a real Slurm, and whether anything was lost, run twice, or not ours to touch."""
