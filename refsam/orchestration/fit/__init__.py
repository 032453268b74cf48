"""refsam fit: what of a model's training fits where, found by measuring real steps. Needs no torch itself.

- `requests`: from overrides to what is to be fitted, and where;
- `limits`: a process with less memory than the machine has;
- `measure`: one step in a process of its own, or from the records;
- `search`: which steps to measure;
- `command`: all of it, with tables and Slurm.
"""
