"""A frozen encoder's embeddings: the same as fresh ones, and computed once."""

from dataclasses import replace

import pytest
import torch
from steps import Case, discs, model_of, take_step
from torch import nn

from refsam.science.data import SeededSampler
from refsam.science.engine.cache import EmbeddingCache


class CountingEncoder:
    """Counts the images that it encodes."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return images.mean(dim=1, keepdim=True).expand(-1, 8, -1, -1).contiguous()


ENOUGH = 1.0
BYTES = 8 * 16 * 16 * 4


def test_a_patch_is_encoded_once() -> None:
    encoder, cache = CountingEncoder(), EmbeddingCache(ENOUGH)
    images = torch.rand(4, 3, 16, 16)
    fresh = CountingEncoder()(images)
    for chosen in ([0, 1], [1, 2], [3, 0, 2], [0]):
        assert torch.equal(cache.embed(images[chosen], encoder), fresh[chosen])
    assert encoder.images == 4
    cache.embed(images[:1] + 1e-6, encoder)
    assert encoder.images == 5


def test_what_does_not_fit_is_encoded_again_but_not_within_a_step() -> None:
    encoder, cache = CountingEncoder(), EmbeddingCache(BYTES / 2**30)
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
    cache = EmbeddingCache(ENOUGH)
    cache.embed(images[:1], encoder)
    torch.testing.assert_close(cache.embed(images, encoder), encoder(images))


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
