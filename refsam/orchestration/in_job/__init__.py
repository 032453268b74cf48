"""What runs inside a job: the supervisor of a run, its child processes, the record of each attempt."""
