"""conf/resource holds the resource study's table, row by row."""

import pytest

from refsam.configuration.compose import compose

GPU_REQUEST = {"gpus": 1, "cores": 8, "memory_gb": 32, "partition": "gpu"}

# resource, device memory (GB), request, and for each model of the study: strategy and number of objects.
STUDY = [
    ("gtx1080", 8, GPU_REQUEST | {"gpu": "GTX1080"}, {"vit_t": ("full", 5), "vit_b": ("freeze_encoder", 10)}),
    ("rtx5000", 16, GPU_REQUEST | {"gpu": "RTX5000"}, {"vit_t": ("full", 20), "vit_b": ("full", 10)}),
    ("v100", 32, GPU_REQUEST | {"gpu": "V100"}, {"vit_t": ("full", 45), "vit_b": ("full", 35)}),
    (
        "medium_64g",
        64,
        {"cores": 16, "memory_gb": 64, "partition": "medium", "gpus": 0},
        {"vit_b": ("full", 15)},
    ),
    (
        "medium_32g",
        32,
        {"cores": 16, "memory_gb": 32, "partition": "medium", "gpus": 0},
        {"vit_b": ("full", 10)},
    ),
    (
        "medium_16g",
        16,
        {"cores": 8, "memory_gb": 16, "partition": "medium", "gpus": 0},
        {"vit_t": ("full", 5)},
    ),
    (
        "medium_8g",
        8,
        {"cores": 8, "memory_gb": 8, "partition": "medium", "gpus": 0},
        {"vit_t": ("freeze_encoder", 1)},
    ),
]


@pytest.mark.parametrize(
    ("name", "memory", "request_values", "settings"), STUDY, ids=[row[0] for row in STUDY]
)
def test_a_resource_is_as_in_the_study(name, memory, request_values, settings):
    resource = compose([f"resource={name}"]).resource
    assert resource.device_memory_gb == memory
    assert {key: getattr(resource.request, key) for key in request_values} == request_values
    of_the_study = {
        model: (setting.peft, setting.n_objects)
        for model, setting in resource.settings.items()
        if setting.source == "resource study"
    }
    assert of_the_study == settings


def test_medium_is_the_node_with_32_gb():
    assert compose(["resource=medium"]).resource == compose(["resource=medium_32g"]).resource


def test_training_defaults_are_those_of_the_study():
    train = compose([]).train
    assert (train.epochs, train.batch_size, train.min_samples, train.early_stopping) == (100, 1, 50, 10)
    assert (train.lr, train.optimizer, train.patch_shape) == (1e-5, "adam", [512, 512])
    assert (train.scheduler_factor, train.scheduler_patience) == (0.9, 3)
    assert (train.n_sub_iterations, train.decoder) == (8, True)


def test_lora_has_the_rank_of_the_study():
    assert compose(["peft=lora"]).peft.rank == 4


def test_covid_if_is_split_as_in_the_study():
    from refsam.configuration.split import split_images

    dataset = compose(["dataset=covid_if"]).dataset
    names = [f"{index:02}" for index in range(dataset.n_files)]
    split = split_images(names, dataset.split, 0, dataset.train_pool, dataset.n_validation, dataset.n_unused)
    assert split.pool == tuple(range(10))
    assert split.validation == (10,)
    assert split.test == tuple(range(13, 49))
