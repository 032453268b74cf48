"""A frozen encoder's embeddings: the same as fresh ones, and computed once."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from steps import Case, discs, model_of, take_step
from torch import nn

from refsam.configuration.compose import compose
from refsam.records.paths import RunPaths
from refsam.science.data import SeededSampler
from refsam.science.engine.cache import DiskStore, EmbeddingCache, MemoryStore, encoder_hash, shared_store


class CountingEncoder:
    """Counts the images that it encodes."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return images.mean(dim=1, keepdim=True).expand(-1, 8, -1, -1).contiguous()


CPU = torch.device("cpu")
BYTES = 8 * 16 * 16 * 4


def cache_in_memory(gib: float = 1.0) -> EmbeddingCache:
    return EmbeddingCache(MemoryStore(gib), CPU)


def test_a_patch_is_encoded_once() -> None:
    encoder, cache = CountingEncoder(), cache_in_memory()
    images = torch.rand(4, 3, 16, 16)
    fresh = CountingEncoder()(images)
    for chosen in ([0, 1], [1, 2], [3, 0, 2], [0]):
        assert torch.equal(cache.embed(images[chosen], encoder), fresh[chosen])
    assert encoder.images == 4
    cache.embed(images[:1] + 1e-6, encoder)
    assert encoder.images == 5


def test_what_does_not_fit_is_encoded_again_but_not_within_a_step() -> None:
    encoder, cache = CountingEncoder(), cache_in_memory(BYTES / 2**30)
    images = torch.rand(2, 3, 16, 16)
    for expected in (2, 3):
        cache.embed(images[:1], encoder)
        cache.embed(images[1:], encoder)
        cache.embed(images[1:], encoder)
        assert encoder.images == expected


@pytest.mark.parametrize(("decoder", "peft", "forwards"), [(True, "frozen encoder", 1), (True, "full", 2)])
def test_both_branches_of_a_step_share_the_forward_of_a_frozen_encoder(
    decoder: bool, peft: str, forwards: int
) -> None:
    calls = []

    def count(sam: nn.Module) -> None:
        sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))

    take_step(replace(Case(peft=peft, decoder=decoder), savings=(count,)), 5)
    assert len(calls) == forwards


def test_cached_embeddings_are_those_of_the_encoder() -> None:
    encoder = model_of(Case(peft="frozen encoder")).image_encoder
    images = nn.functional.interpolate(discs(Case(batch_size=2))[0].float(), (128, 128))
    cache = cache_in_memory()
    cache.embed(images[:1], encoder)
    torch.testing.assert_close(cache.embed(images, encoder), encoder(images))


def test_what_does_not_come_again_takes_no_room() -> None:
    encoder, cache = CountingEncoder(), cache_in_memory(BYTES / 2**30)
    passing, again = torch.rand(2, 1, 3, 16, 16)
    cache.embed(passing, encoder, keep=False)
    for _ in range(2):
        cache.embed(again, encoder)
        cache.embed(passing, encoder, keep=False)
    assert encoder.images == 3 + 1


def test_another_process_finds_embeddings_on_the_disk(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 16, 16)
    fresh = CountingEncoder()(images)
    for expected in (2, 0):
        encoder, cache = CountingEncoder(), EmbeddingCache(DiskStore(tmp_path / "kept"), CPU)
        assert torch.equal(cache.embed(images, encoder), fresh)
        assert encoder.images == expected
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_damaged_file_is_computed_and_written_again(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 16, 16)
    EmbeddingCache(DiskStore(tmp_path), CPU).embed(images, CountingEncoder())
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert torch.equal(
            EmbeddingCache(DiskStore(tmp_path), CPU).embed(images, CountingEncoder()),
            CountingEncoder()(images),
        )
        assert path.read_bytes() == whole


def test_processes_that_write_the_same_embedding_do_not_disturb_each_other(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 64, 64)
    fresh = CountingEncoder()(images)

    def embed_often(_: int) -> bool:
        for path in tmp_path.glob("*.pt"):
            path.unlink(missing_ok=True)
        return torch.equal(EmbeddingCache(DiskStore(tmp_path), CPU).embed(images, CountingEncoder()), fresh)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(embed_often, range(200)))
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


def test_a_folder_that_cannot_be_written_ends_the_keeping_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    encoder, cache = CountingEncoder(), EmbeddingCache(DiskStore(tmp_path / "file" / "kept"), CPU)
    images = torch.rand(3, 3, 16, 16)
    for image in images:
        assert torch.equal(cache.embed(image[None], encoder), CountingEncoder()(image[None]))
    assert capsys.readouterr().err.count("takes no more embeddings") == 1


def test_float16_rounds_what_is_computed_as_what_is_read(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 16, 16)
    exact = CountingEncoder()(images)
    given = []
    for store in (DiskStore(tmp_path), DiskStore(tmp_path), MemoryStore(1.0)):
        given.append(EmbeddingCache(store, CPU, torch.float16).embed(images, CountingEncoder()))
    assert all(torch.equal(one, given[0]) and one.dtype == torch.float32 for one in given)
    assert not torch.equal(given[0], exact)
    torch.testing.assert_close(given[0], exact, rtol=1e-3, atol=0)


def test_another_encoder_or_arithmetic_has_another_folder(tmp_path: Path) -> None:
    config, paths = compose([f"data={tmp_path}"]), RunPaths(tmp_path / "run")
    encoder, same = (model_of(Case(peft="frozen encoder")).image_encoder for _ in range(2))
    assert encoder_hash(encoder) == encoder_hash(same)
    folders = [shared_store(config, paths, encoder, CPU, arithmetic).folder for arithmetic in "ab"]
    with torch.no_grad():
        same.neck[0].weight[0, 0, 0, 0] += 1
    folders.append(shared_store(config, paths, same, CPU, "a").folder)
    assert len(set(folders)) == 3
    assert all(folder.parent == tmp_path / "embeddings" for folder in folders)


def test_a_pool_gives_the_same_patches_in_every_epoch() -> None:
    sampler = SeededSampler(5, seed=0, pool=5)
    first = list(sampler)
    sampler.epoch = 1
    second = list(sampler)
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second


@pytest.mark.parametrize(("pool", "times"), [(2, {2, 3}), (9, {1})])
def test_a_pool_of_another_size_is_used_evenly(pool: int, times: set[int]) -> None:
    keys = list(SeededSampler(5, seed=0, pool=pool))
    assert len(keys) == 5
    assert set(keys) <= set(range(pool))
    assert {keys.count(key) for key in keys} <= times


def test_a_larger_pool_is_gone_through_before_a_patch_comes_again() -> None:
    sampler = SeededSampler(5, seed=0, pool=10)
    epochs = []
    for sampler.epoch in range(4):
        epochs.append(list(sampler))
    assert sorted(epochs[0] + epochs[1]) == sorted(epochs[2] + epochs[3]) == list(range(10))
    assert epochs[0] != epochs[2]


def test_what_was_not_used_for_longest_makes_room_on_the_disk(tmp_path: Path) -> None:
    """Room for three files of two encoders; the one that is read again stays."""
    value = torch.rand(8, 16, 16)
    first, second = DiskStore(tmp_path / "a"), DiskStore(tmp_path / "b")
    for number, (store, key) in enumerate(((first, "old"), (first, "used"), (second, "young"))):
        store.put(key, value)
        os.utime(store.folder / f"{key}.pt", (number, number))
    assert first.get("used") is not None
    size = (tmp_path / "a" / "old.pt").stat().st_size
    DiskStore(tmp_path / "b", limit_gib=3.5 * size / 2**30).put("new", value)
    assert sorted(path.name for path in tmp_path.glob("*/*.pt")) == ["new.pt", "used.pt", "young.pt"]
    assert first.get("old") is None
