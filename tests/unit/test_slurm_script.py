"""What sbatch is told besides the request: further options, and where a script comes from."""

import sys

import pytest

from refsam import __version__
from refsam.configuration.schema import ClusterConfig, RequestConfig
from refsam.errors import ConfigError
from refsam.orchestration.submission.slurm_script import made_by, parameters, parse_option

REQUEST = RequestConfig(partition="gpu", gpu="V100", gpus=1, cores=8, memory_gb=32, time="48:00:00")


@pytest.mark.parametrize(
    ("option", "parsed"),
    [
        ("--mail-type=END,FAIL", ("mail-type", "END,FAIL")),
        ("--licenses=matlab:2,foo@bar", ("licenses", "matlab:2,foo@bar")),
        ("--gres=lustre:1,gpubank:2", ("gres", "lustre:1,gpubank:2")),
        ("--time-min=1:00:00", ("time-min", "1:00:00")),
        ("--exclusive", ("exclusive", True)),
        ("--reservation=it's $(mine)", ("reservation", "it's $(mine)")),
    ],
)
def test_further_options_are_taken_as_they_are(option, parsed):
    assert parse_option(option) == parsed


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--partition=gpu", "refsam sets --partition itself; give resource.request.partition"),
        ("--part=gpu", "refsam sets --partition itself; give resource.request.partition"),
        ("--arr=0-9", "refsam sets --array itself; give cluster.array_parallelism"),
        ("--mem=0", "refsam sets --mem itself; give resource.request.memory_gb"),
        ("--output=/tmp/x", "refsam sets --output itself"),
        ("--export=NONE", "refsam sets --export itself"),
        ("--gres=gpu:V100:2", "refsam asks for GPUs itself; give resource.request.gpu and .gpus"),
        ("--gres=lustre:1,gres/gpu:1", "refsam asks for GPUs itself"),
        ("-p gpu", "expected an option of sbatch in one line, as --name=value or --name"),
        ("-p", "expected an option of sbatch in one line"),
        ("--mail-user=", "expected an option of sbatch in one line"),
        ("--comment x", "expected an option of sbatch in one line"),
        ("--mail-user=a\n#SBATCH --uid=0", "expected an option of sbatch in one line"),
        ("mail-type=END", "expected an option of sbatch in one line"),
        ("", "expected an option of sbatch in one line"),
    ],
)
def test_what_is_no_further_option_is_one_sentence(option, why):
    with pytest.raises(ConfigError) as refused:
        parse_option(option)
    assert str(refused.value).startswith(f"cluster.extra: {option!r} was given")
    assert why in str(refused.value)


def test_a_script_names_time_options_command_and_version(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "refsam.sweep", "name=it's a\ntest"])
    cluster = ClusterConfig(kind="slurm", extra=["--mail-type=END", "--exclusive"])
    values = parameters(REQUEST, cluster, [], "study", "refsam-study")
    extra = values["additional_parameters"]
    assert extra["time"] == "2-00:00:00"
    assert (extra["mail-type"], extra["exclusive"]) == ("END", True)
    assert made_by() in values["setup"]
    assert made_by() == (f"# made by refsam {__version__}: python3 -m refsam.sweep 'name=it'\"'\"'s a test'")
