"""Real training inside a real Slurm with its limit of memory: micro-sam's step is killed, ours is not."""

import pytest
from slurm_helpers import wait_until

from refsam import cli
from refsam.orchestration.slurm.questions import SlurmQuery, statuses
from refsam.records.fits import FitsFolder
from refsam.records.paths import RunsFolder
from refsam.records.status import Reason, State, Status
from refsam.sweep import main
from refsam.system.files import read_json

# 30 objects in 16 sub-iterations on patches of 512 x 512: micro-sam's step keeps the masks of all of them.
RUN = [
    "-m",
    "cluster=scc",
    "resource=medium_8g",
    "resource.request.cores=1",
    "resource.request.memory_gb=2",
    "model=vit_nano",
    "peft=full",
    "dataset=nuclei",
    "n_images=1",
    "n_objects=30",
    "train.decoder=false",
    "train.n_sub_iterations=16",
    "train.max_steps=1",
    "train.min_samples=1",
    "train.validation_samples=1",
    "train.precision=float32",
    "evaluate.max_images=1",
    "evaluate.crop=[128,128]",
    "evaluate.modes=[box]",
    "baseline=false",
]


@pytest.fixture
def here(slurm_cluster, nuclei, tmp_path, monkeypatch):
    """Where sweeps on the nuclei are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFSAM_DATA", nuclei.root.rpartition("/")[0])
    return tmp_path


def submitted(root, engine):
    """The runs folder and the id of a run that has been given to Slurm."""
    folder = RunsFolder(root / engine)
    main([*RUN, f"train.engine={engine}", "name=limited", f"runs={folder.root}"])
    (run,) = read_json(folder.sweep("limited").manifest)["runs"]
    return folder, run["run_id"]


def ended(folder, run_id) -> Status:
    """What Slurm and the record say of a run when it has ended."""

    def look():
        return statuses(folder, [run_id], SlurmQuery())[0][run_id]

    wait_until(lambda: look().state in (State.completed, State.failed))
    return look()


def test_a_step_that_outgrows_the_limit_in_micro_sam_fits_with_ours(here):
    runs = {engine: submitted(here, engine) for engine in ("micro_sam", "refsam")}
    assert runs["micro_sam"][1] == runs["refsam"][1], "it is the same run"
    theirs = ended(*runs["micro_sam"])
    assert (theirs.state, theirs.reason) == (State.failed, Reason.out_of_memory)
    ours = ended(*runs["refsam"])
    assert ours.state is State.completed, ours.message
    folder, run_id = runs["refsam"]
    training = read_json(folder.run(run_id).training)
    assert 0 < training["peak_memory_gib"] < 2.5  # pages of libraries count in it, and not in the limit


def test_a_fit_is_measured_on_the_resource_itself(here, capsys):
    command = ["fit", "--slurm", "--engine", "refsam", "--max-objects", "2", "resource=medium_8g"]
    command += ["resource.request.cores=1", "resource.request.memory_gb=2", "model=vit_nano", "peft=full"]
    command += [
        "n_objects=2",
        "train.decoder=false",
        "train.patch_shape=[128,128]",
        "train.n_sub_iterations=1",
    ]
    assert cli.main(command) == 0
    assert "medium_8g: job " in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "is in the queue or running already" in capsys.readouterr().err
    folder = FitsFolder(here / "runs" / "fits")
    wait_until(folder.read_fits)
    (fit,) = folder.read_fits()
    assert (fit.resource, fit.memory_gib, fit.simulated) == ("medium_8g", 2.0, False)
    assert fit.refsam is not None
    assert fit.refsam.n_objects == 2
