import pytest

from refsam.configuration.split import split_images

NAMES = [f"image_{index:02}" for index in range(49)]


def test_every_image_is_used_once():
    split = split_images(NAMES, "seeded", 0, 10, 1)
    assert sorted((*split.pool, *split.validation, *split.test)) == list(range(49))
    assert (len(split.pool), len(split.validation), len(split.test)) == (10, 1, 38)


def test_the_seed_decides_the_order_and_nothing_else_does():
    assert split_images(NAMES, "seeded", 3, 10, 1) == split_images(list(NAMES), "seeded", 3, 10, 1)
    assert split_images(NAMES, "seeded", 3, 10, 1) != split_images(NAMES, "seeded", 4, 10, 1)


def test_a_new_image_moves_no_other_image_in_the_order():
    before = split_images(NAMES, "seeded", 0, 48, 1)
    after = split_images([*NAMES, "zzz"], "seeded", 0, 49, 1)
    order = [*before.pool, *before.validation, *before.test]
    longer = [index for index in (*after.pool, *after.validation, *after.test) if index != 49]
    assert longer == order


@pytest.mark.parametrize(
    ("total", "pool", "test"), [(3, 1, 1), (6, 4, 1), (12, 8, 3), (13, 9, 3), (15, 10, 4)]
)
def test_a_small_data_set_keeps_a_quarter_for_testing(total, pool, test):
    split = split_images(NAMES[:total], "seeded", 0, 10, 1)
    assert (len(split.pool), len(split.validation), len(split.test)) == (pool, 1, test)


@pytest.mark.parametrize("total", [0, 1, 2])
def test_too_few_images_are_refused(total):
    with pytest.raises(ValueError, match=f"{total} images cannot be split"):
        split_images(NAMES[:total], "seeded", 0, 10, 1)
