"""A real Slurm on one machine, to try and to test sweeps. Started by: python -m refsam.test_cluster up"""
