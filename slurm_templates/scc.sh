# The prologue of a job on the SCC of the GWDG: without the modules that the login shell left, and with a
# scratch folder on the disk of the node where the site names one.
echo "refsam: job ${SLURM_JOB_ID} on $(hostname)"
if type module > /dev/null 2>&1; then
    module purge
fi
if [ -d "${TMP_LOCAL:-}" ]; then
    export TMPDIR="${TMP_LOCAL}"
fi
