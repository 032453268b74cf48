"""What a site has and allows, read from Slurm's answers; these tests need no Slurm."""

import pytest

from refsam.configuration.schema import (
    ClusterConfig,
    ModelConfig,
    PeftConfig,
    RefsamConfig,
    RequestConfig,
    TrainConfig,
)
from refsam.errors import SlurmUnavailable
from refsam.orchestration.planning.checkpoint_room import checkpoint_bytes
from refsam.orchestration.slurm import site
from refsam.orchestration.slurm.site import (
    QueueLimits,
    out_of_service,
    parse_max_submit_jobs,
    parse_nodes,
    parse_partitions,
    request_problem,
    unasked_problem,
)

PARTITIONS = parse_partitions(
    "PartitionName=medium AllowGroups=ALL Default=YES MaxTime=2-00:00:00 State=UP TotalNodes=4\n"
    "PartitionName=gpu AllowGroups=ALL Default=NO DefaultTime=NONE MaxTime=UNLIMITED State=UP\n"
)
NODES = parse_nodes(
    "NodeName=cpu1 CPUTot=8 Gres=(null) OS=Linux 6 #1 RealMemory=8000 Partitions=medium Owner=N/A\n"
    "NodeName=v1 CPUTot=16 Gres=gpu:V100:2(S:0-1),tmp:9 RealMemory=65536 Partitions=gpu,medium\n"
    "NodeName=g1 CPUTot=4 Gres=gpu:4 RealMemory=16384 Partitions=gpu Reason=away\n"
)


def request(**values):
    return RequestConfig(**{"cores": 1, "memory_gb": 1, "time": "1:00:00", **values})


@pytest.mark.parametrize(
    "possible",
    [
        request(),
        request(partition="medium", cores=16, memory_gb=64, time="2-00:00:00"),
        request(partition="gpu", gpu="v100", gpus=2, time="99-00:00:00"),
        request(partition="gpu", gpus=4),
    ],
)
def test_what_some_node_has_can_be_asked_for(possible):
    assert request_problem(possible, PARTITIONS, NODES) is None


@pytest.mark.parametrize(
    ("impossible", "sentence"),
    [
        (
            request(partition="gpus"),
            "resource.request.partition must be one of gpu, medium, got gpus (did you mean gpu?)",
        ),
        (
            request(time="2-00:00:01"),
            "resource.request.time must be at most 2-00:00:00 in partition medium, got 2-00:00:01",
        ),
        (
            request(partition="gpu", gpu="A100", gpus=1),
            "resource.request.gpu=1 × A100, but in partition gpu its nodes have 2 × V100, 4 × GPU",
        ),
        (
            request(partition="gpu", gpu="V100", gpus=1, cores=17),
            "resource.request.cores must be at most 16 cores in partition gpu with V100, got 17",
        ),
        (
            request(cores=9, memory_gb=65),
            "resource.request.memory_gb must be at most 64 GiB in partition medium, got 65",
        ),
    ],
)
def test_what_no_node_has_is_one_sentence(impossible, sentence):
    assert request_problem(impossible, PARTITIONS, NODES) == sentence


@pytest.mark.parametrize(
    ("state", "in_service"),
    [
        ("IDLE", True),
        ("MIXED+PLANNED", True),
        ("IDLE+MAINTENANCE+RESERVED", True),
        ("IDLE+POWERED_DOWN", True),
    ]
    + [(state, False) for state in ("IDLE+DRAIN", "DOWN", "IDLE*", "MIXED+DRAIN", "UNKNOWN", "DOWN+DRAIN*")],
)
def test_a_node_that_slurm_does_not_count_on_is_out_of_service_for_what_it_could_run(state, in_service):
    nodes = parse_nodes(
        f"NodeName=v1 CPUTot=8 Gres=gpu:V100:2 RealMemory=32768 State={state} Partitions=gpu Reason=x y\n"
        "NodeName=cpu1 CPUTot=8 Gres=(null) RealMemory=32768 State=DOWN Partitions=medium\n"
    )
    two, three = (request(partition="gpu", gpu="V100", gpus=gpus) for gpus in (2, 3))
    assert out_of_service(two, PARTITIONS, nodes) == ([] if in_service else nodes[:1])
    assert out_of_service(three, PARTITIONS, nodes) == []
    assert out_of_service(request(), PARTITIONS, nodes) == nodes[1:]


def test_the_configuration_says_how_long_jobs_may_be_where_scontrol_does_not():
    cluster = ClusterConfig(max_times={"gpu": "2-00:00:00"})
    too_long = request(partition="gpu", time="2-00:00:01")
    sentence = "resource.request.time must be at most 2-00:00:00 in partition gpu, got 2-00:00:01"
    assert unasked_problem(too_long, cluster) == sentence
    for possible in (request(partition="gpu", time="48:00:00"), request(partition="medium", time="9-0")):
        assert unasked_problem(possible, cluster) is None


@pytest.mark.parametrize(
    ("given", "answered", "expected"),
    [(None, 1001, 1001), (5000, 1001, 1001), (20, 1001, 20), (20, None, 20), (None, None, None)],
)
def test_the_smaller_limit_on_arrays_counts(monkeypatch, given, answered, expected):
    def ask(command):
        if command[0] == "scontrol" and answered is not None:
            return f"MaxArraySize            = {answered}\n"
        raise SlurmUnavailable("no")

    monkeypatch.setattr(site, "run_command", ask)
    cluster = ClusterConfig(max_array_size=given)
    if expected is None:
        with pytest.raises(SlurmUnavailable):
            site.limits(cluster, lambda sentence: None)
    else:
        assert site.limits(cluster, lambda sentence: None) == QueueLimits(expected, None)


def test_the_smaller_limit_of_account_and_qos_counts():
    user = "main|main|100|normal\nmain|other||long\n"
    qos = "normal|50\nlong|\nshort|3\n"
    assert parse_max_submit_jobs(user, qos, None, None) == 50
    assert parse_max_submit_jobs(user, qos, "other", None) is None
    assert parse_max_submit_jobs(user, qos, "main", "short") == 3
    assert parse_max_submit_jobs("", "", None, None) is None


def test_the_room_for_checkpoints_follows_from_what_is_trained():
    def size(strategy, rank=None, **model):
        return checkpoint_bytes(
            RefsamConfig(
                model=ModelConfig(**{"architecture": "vit_b", **model}),
                peft=PeftConfig(name=strategy, rank=rank),
                train=TrainConfig(decoder=False),
            )
        )

    # Weights in best.pt, and in each latest.pt besides them two values of Adam for each trained parameter.
    assert size("full") == 4 * 93_735_728 * 7
    assert size("freeze_encoder") == size("lora", rank=4) == 4 * (3 * 93_735_728 + 2 * 2 * 4_064_816)
    assert size("full", architecture="vit_h") > 6 * size("full")
