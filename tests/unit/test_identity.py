import dataclasses
import re

import pytest

from refsam.configuration.compose import compose
from refsam.configuration.patch_pool import pool_size, with_patch_pool
from refsam.errors import ConfigError
from refsam.orchestration.planning.checks import check_values, combination_problem
from refsam.records.identity import file_hash, identity, run_id


def name(*overrides, fingerprint="data", weights=None):
    config = dataclasses.replace(compose(["peft=full", "n_objects=5", *overrides]))
    return run_id(config, identity(with_patch_pool(config), fingerprint, weights))


@pytest.mark.parametrize(
    "override",
    [
        "runs=/elsewhere",
        "data=/elsewhere",
        "name=x",
        "cluster=local",
        "train.workers=7",
        "train.save=adapter",
        "train.engine=micro_sam",
        "train.object_chunk=2",
        "train.checkpoint_encoder=on",
        "train.checkpoint_decoder=on",
        "train.attention=eager",
        "train.embedding_cache=disk",
        "train.embedding_dtype=float16",  # there is none to keep: the encoder is trained
        "resource.request.time=1:00:00",
        "resource.request.partition=other",
        "evaluate.modes=[box]",
        "evaluate.batch_size=3",
        "evaluate.where=v100",
        "+resource@evaluate.resource=v100",
        "dataset.root=/elsewhere",
        "model.memory_gb=3",
        "dry_run=true",
    ],
)
def test_what_does_not_change_the_result_does_not_change_the_run(override):
    assert name(override) == name()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "n_images=2",
        "n_objects=6",
        "train.lr=1e-4",
        "model.weights=random",
        "peft=lora",
        "peft.freeze=[mask_decoder]",
        "train.loss=dice_focal",
        "resource=v100",
        "evaluate.dilation=3",
        "dataset.normalize=minmax",
        "dataset.normalize=patch",
        "train.validation_patches=new",
        "train.precision=float32",
        "train.patch_pool=50",
        "train.optimizer=lion",
        "train.betas=[0.9,0.95]",
        "train.weight_decay=0.1",
        "train.max_grad_norm=1",
        "train.accumulate=2",
        "train.scheduler=cosine",
        "train.stop_on=mIoU",
    ],
)
def test_what_changes_the_result_is_another_run(override):
    assert name(override) != name()


def with_group(setting):
    added = setting.startswith("+")
    return f"{'+' * added}peft.{setting.removeprefix('+')}"


def test_every_setting_of_a_strategy_is_part_of_the_run():
    settings = (
        "rank=8",
        "alpha=16",
        "dropout=0.1",
        "share=50",
        "+options.use_rslora=true",
        "freeze=[mask_decoder]",
    )
    names = [name("peft=dora", *([with_group(setting)] if setting else [])) for setting in ("", *settings)]
    assert len(set(names)) == len(names)


def test_settings_that_a_strategy_is_not_given_leave_its_run_as_it_was_before_they_existed():
    values = identity(compose(["peft=lora", "n_objects=5"]), "data", None)
    assert values["peft"] == {"name": "lora", "freeze": [], "rank": 4, "update_matrices": ["q", "v"]}
    assert not {"loss", "save", "validation_patches"} & set(values["train"])


def test_fields_that_are_newer_than_a_run_leave_its_identity_as_it_was():
    usual = {
        *("epochs", "max_steps", "batch_size", "min_samples", "validation_samples", "lr", "optimizer"),
        *("scheduler_factor", "scheduler_patience", "early_stopping", "patch_shape", "n_sub_iterations"),
        *("mask_prob", "box_distortion", "decoder", "precision", "patch_pool"),
    }
    assert set(identity(compose(["peft=lora", "n_objects=5"]), "data", None)["train"]) == usual


def test_the_loss_of_before_is_the_same_run_and_the_study_s_another_one():
    focal, before = "train.loss=dice_focal", "train.focal_alpha=0.25"
    values = identity(compose(["peft=full", "n_objects=5", focal, before]), "data", None)["train"]
    assert not {"focal_alpha", "mask_threshold"} & set(values)
    assert name(focal) == name(focal, "train.focal_alpha=null") != name(focal, before)
    assert name(focal, "train.mask_threshold=0.5") != name(focal)
    assert name("train.focal_alpha=0.5", "train.mask_threshold=0.5") == name()


def test_how_a_run_is_measured_is_no_part_of_it():
    assert name("evaluate.metrics=qlora_sam", "evaluate.modes=[box]") == name()


def test_the_decoder_is_part_of_the_run_however_it_is_frozen():
    frozen = name("peft=dora", "peft.freeze=[prompt_encoder,mask_decoder]")
    assert name("peft=dora", "peft.decoder=freeze") == frozen
    assert name("peft=dora", "peft.decoder=train") == name("peft=dora")
    assert len({frozen, name("peft=dora"), name("peft=dora", "peft.decoder=adapt")}) == 3
    all_layers = ("peft=qdora", "peft.decoder=adapt", "peft.quantized_layers=all")
    assert name(*all_layers) != name(*all_layers[:2])


def test_what_only_the_other_schedule_takes_is_no_part_of_the_run():
    cosine = name("train.scheduler=cosine")
    assert name("train.scheduler=cosine", "train.scheduler_patience=9") == cosine
    assert name("train.scheduler=cosine", "train.scheduler_factor=0.5") == cosine
    assert name("train.scheduler=cosine", "train.warmup=0.1") != cosine


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["train.warmup=0.1"], "train.warmup=0.1 does not go with train.scheduler=plateau, allowed: 0"),
        (
            ["train.stop_on=mIoU", "train.engine=micro_sam"],
            "train.stop_on=mIoU does not go with train.engine=micro_sam, whose validation returns no masks, "
            "allowed: loss",
        ),
        (
            ["train.accumulate=2", "train.optimizer_in_backward=true"],
            "train.optimizer_in_backward=true does not go with train.accumulate=2, which needs all gradients "
            "at once, allowed: false",
        ),
        (["train.epochs=null", "train.max_steps=9", "train.accumulate=2", "train.engine=micro_sam"], None),
    ],
)
def test_settings_of_the_steps_that_do_not_go_together_are_said_in_the_plan(overrides, problem):
    config = compose(["peft=full", "n_objects=5", "dataset=nuclei", *overrides])
    check_values(config)
    assert combination_problem(config, 48) == problem


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("train.accumulate=0", "an integer >= 1"),
        ("train.scheduler=linear", "plateau or cosine"),
        ("train.warmup=1", "a number from 0 to less than 1"),
        ("train.stop_on=iou", "loss or mIoU"),
        ("train.weight_decay=-1", "null, or a number from 0"),
        ("train.max_grad_norm=0", "null, or a number > 0"),
        ("train.betas=[0.9]", "null, or two numbers from 0 to less than 1"),
    ],
)
def test_a_setting_of_the_steps_that_cannot_be_is_refused(override, allowed):
    with pytest.raises(ConfigError, match=rf"^{override.partition('=')[0]}\b.*{re.escape(allowed)}"):
        check_values(compose(["n_objects=5", override]))


@pytest.mark.parametrize(("optimizer", "own"), [("adam", 0), ("adamw", 0.01), ("lion8bit", 0)])
def test_an_optimizer_s_own_weight_decay_is_the_same_run_whether_given_or_not(optimizer, own):
    chosen = f"train.optimizer={optimizer}"
    assert name(chosen, f"train.weight_decay={own}") == name(chosen)
    assert name(chosen, "train.weight_decay=0.5") != name(chosen)


def test_crowds_are_part_of_the_run_only_where_they_are_included():
    annotated = ("dataset=coco", "dataset.root=d")
    assert name(*annotated, "dataset.crowds=skip") == name(*annotated)
    assert name(*annotated, "dataset.crowds=include") != name(*annotated)
    assert "crowds" not in identity(compose(["peft=lora", "n_objects=5"]), "data", None)["dataset"]


def test_chosen_channels_and_numbered_pieces_are_part_of_the_run_only_where_they_are_given():
    own = ("dataset=folder", "dataset.root=d")
    values = identity(compose([*own, "peft=lora", "n_objects=5"]), "data", None)["dataset"]
    assert not {"channels", "labels_are"} & set(values)
    given = [name(*own, f"dataset.channels={channels}") for channels in ("null", "[0]", "[0,2]", "[r,g,b]")]
    assert given[0] == name(*own)
    assert len(set(given)) == 4
    assert name(*own, "dataset.labels_are=instances") == name(*own)
    assert name(*own, "dataset.labels_are=components") != name(*own)


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        *(
            (f"dataset.channels={channels}", r"one to three channels, .*such as \[2\], \[0,2\] or \[r,g,b\]")
            for channels in ("[]", "[0,1,2,3]", "[x]", "[-1]", "[null]", "[true]", "[1.5]")
        ),
        ("dataset.labels_are=masks", "null, instances or components"),
    ],
)
def test_channels_and_kinds_of_labels_that_are_none_are_refused(override, allowed):
    config = compose(["dataset=folder", "dataset.root=d", "n_objects=5", override])
    with pytest.raises(ConfigError, match=rf"{override.partition('=')[0]} must be .*{allowed}"):
        check_values(config)


def test_rounded_embeddings_of_a_frozen_encoder_are_another_run():
    assert name("peft=freeze_encoder", "train.embedding_dtype=float16") != name("peft=freeze_encoder")


def test_a_frozen_encoder_has_a_pool_of_patches_unless_another_is_given():
    pools = [
        with_patch_pool(compose(overrides)).train.patch_pool
        for overrides in (
            ["peft=freeze_encoder"],
            ["peft=full"],
            ["peft=lora"],
            ["peft=freeze_encoder", "train.patch_pool=null"],
            ["peft=full", "train.patch_pool=30"],
        )
    ]
    assert pools == ["4x", None, None, None, 30]
    assert pool_size(compose(["peft=freeze_encoder"]), samples=50) == 200
    assert pool_size(compose(["peft=freeze_encoder", "train.patch_pool=7"]), samples=50) == 7


@pytest.mark.parametrize("pool", ["0", "0x", "x", "many", "1.5", "true"])
def test_a_pool_that_is_none_is_refused(pool):
    config = compose(["n_objects=5", f"train.patch_pool={pool}"])
    with pytest.raises(ConfigError, match=r"train\.patch_pool must be auto, null, .*, got "):
        check_values(config)


@pytest.mark.parametrize("other", ["train.embedding_cache=off", "train.engine=micro_sam"])
def test_rounding_embeddings_that_are_not_kept_is_refused(other):
    config = compose(["peft=freeze_encoder", "train.embedding_dtype=float16", other, "model.weights=random"])
    problem = combination_problem(config, total_images=40)
    assert problem == (
        f"train.embedding_dtype=float16 does not go with {other}, which keeps no embeddings, allowed: float32"
    )


def test_the_seed_of_the_split_is_part_of_a_run_where_it_is_not_the_run_s_seed():
    assert (
        name("dataset.split_seed=null") == name("dataset.split_seed=0") == name()
    )  # as before it was a field
    assert name("seed=1", "dataset.split_seed=null") == name("seed=1", "dataset.split_seed=1")
    assert len({name("seed=1"), name("seed=1", "dataset.split_seed=1"), name("dataset.split_seed=1")}) == 3
    ordered = ("dataset.split=ordered", "seed=1")
    assert name(*ordered) == name(*ordered, "dataset.split_seed=7")


def test_run_ids_are_those_of_before():
    assert name() == "vit_b-full-n5-local-nuclei-s0-d701e58ec1"
    assert name("dataset=covid_if", "seed=2", "peft=lora") == "vit_b-lora-n5-local-covid_if-s2-575a29aeb3"
    assert name("kind=baseline", "dataset.split_seed=null", "seed=3") == "vit_b-initial-nuclei-s3-7bf2b3d1cc"
    rounded = name("peft=freeze_encoder", "train.embedding_dtype=float16")
    assert rounded == "vit_b-freeze_encoder-n5-local-nuclei-s0-36be0ae68d"


def test_other_images_are_another_run():
    assert name(fingerprint="other") != name()


def test_a_checkpoint_is_known_by_its_content_not_by_its_path(tmp_path):
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    assert file_hash(first) == file_hash(second)
    by_path = [name(f"model.weights={path}", weights=file_hash(path)) for path in (first, second)]
    assert by_path[0] == by_path[1]
    second.write_bytes(b"others")
    assert file_hash(first) != file_hash(second)


def test_a_baseline_is_the_same_for_every_resource_strategy_and_number_of_images():
    first = name("kind=baseline", "resource=v100", "n_images=1")
    assert first == name("kind=baseline", "resource=gtx1080", "n_images=10", "peft=lora", "train.lr=1")
    assert first != name("kind=baseline", "model=vit_t")
    assert first != name("resource=v100", "n_images=1")


def test_a_run_id_is_a_safe_folder_name():
    assert "/" not in name("resource.name='a/../b c'")
    assert name("resource.name='a/../b c'").startswith("vit_b-full-n5-a_.._b_c-nuclei-s0-")
