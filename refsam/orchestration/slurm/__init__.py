"""What Slurm is asked and told: its queue and accounting, what a site allows, what a run asks for."""
