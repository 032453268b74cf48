"""What the project itself needs, and no user: drawings and tables of the documents, a Slurm for tests."""
