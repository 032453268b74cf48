"""What refsam needs of the operating system, a terminal and the disk. Knows nothing of runs or models."""
