# The prologue of every job, unless cluster.template names another. A job brings its own Python.
# A prologue is bash. It runs on the node before the run starts, with the job's SLURM_* variables set.
echo "refsam: job ${SLURM_JOB_ID} on $(hostname)"
