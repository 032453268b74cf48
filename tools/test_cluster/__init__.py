"""A real Slurm on one machine, to try and to test sweeps. Started by: python -m tools.test_cluster up"""
