"""All that is random in an epoch is a function of (seed, epoch, image), and of nothing else."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pocketdx_train import augment, shift
from pocketdx_train.architectures import ARCHITECTURES
from pocketdx_train.augment import augmentation
from pocketdx_train.errors import TrainError
from pocketdx_train.loading import EpochSampler, Key, PlainSet, TrainingSet, class_weights, mix
from pocketdx_train.prepare import Prepared
from pocketdx_train.settings import ARCHITECTURES as ARCHITECTURE_NAMES
from pocketdx_train.settings import AUGMENTATIONS


def training_set(prepared: Prepared, recipe: str = "medical", seed: int = 0) -> TrainingSet:
    return TrainingSet(
        prepared.data.pixels, prepared.positions("train"), prepared.targets(), augmentation(recipe), seed
    )


def epoch_of(dataset: TrainingSet, epoch: int, *, workers: int = 0) -> torch.Tensor:
    """All pictures of an epoch in the order of their numbers, uint8 [N, 3, S, S]."""
    sampler = EpochSampler(len(dataset), seed=0, epoch=lambda: epoch)
    batches = list(DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers))
    numbers = torch.cat([batch[2] for batch in batches])
    return torch.cat([batch[0] for batch in batches])[numbers.argsort()]


# --- the order -------------------------------------------------------------------------------------------------------


def test_each_epoch_has_an_order_of_its_own_that_does_not_depend_on_what_ran_before() -> None:
    epoch = 0
    sampler = EpochSampler(50, seed=1, epoch=lambda: epoch)
    first = list(sampler)
    assert sorted(key.number for key in first) == list(range(50))
    epoch = 3
    torch.rand(7)
    np.random.default_rng().random()
    fourth = list(sampler)
    assert [key.epoch for key in fourth] == [3] * 50
    assert [key.number for key in first] != [key.number for key in fourth]
    assert fourth == list(EpochSampler(50, seed=1, epoch=lambda: 3))
    assert [key.number for key in fourth] != [key.number for key in EpochSampler(50, seed=2, epoch=lambda: 3)]


@given(st.integers(1, 60), st.integers(1, 5))
@settings(deadline=None)
def test_processes_share_an_epoch_out_evenly_and_without_overlap(count: int, processes: int) -> None:
    shares = [
        [key.number for key in EpochSampler(count, 0, lambda: 2, rank=rank, processes=processes)]
        for rank in range(processes)
    ]
    assert {len(share) for share in shares} == {count // processes}
    drawn = [number for share in shares for number in share]
    assert len(set(drawn)) == len(drawn) == count // processes * processes


def test_balanced_sampling_draws_each_class_as_often() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    weights = class_weights(labels, 3)[labels]
    drawn = Counter(
        int(labels[key.number])
        for epoch in range(20)
        for key in EpochSampler(1000, 0, lambda epoch=epoch: epoch, weights=weights)  # type: ignore[misc]
    )
    for label in range(3):
        assert drawn[label] == pytest.approx(20_000 / 3, rel=0.03)


def test_an_image_that_an_epoch_draws_twice_is_not_augmented_the_same_way_twice(prepared: Prepared) -> None:
    weights = np.full(10, 0.001)
    weights[4] = 1.0
    keys = [key for key in EpochSampler(10, 0, lambda: 0, weights=weights) if key.number == 4]
    assert [key.repeat for key in keys] == list(range(len(keys)))
    dataset = training_set(prepared)
    once, twice = dataset[keys[0]][0], dataset[keys[1]][0]
    assert not torch.equal(once, twice)


def test_class_weights_are_inverse_shares_that_average_to_one_over_the_images() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3)
    assert weights == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert weights[labels].mean() == pytest.approx(1.0)


# --- augmentation ----------------------------------------------------------------------------------------------------


def test_augmentation_is_the_same_whatever_the_number_of_workers(prepared: Prepared) -> None:
    dataset = training_set(prepared)
    alone = epoch_of(dataset, 1)
    assert torch.equal(alone, epoch_of(dataset, 1, workers=2))
    assert not torch.equal(alone, epoch_of(dataset, 2))
    assert not torch.equal(alone, epoch_of(training_set(prepared, seed=1), 1))


@pytest.mark.parametrize("recipe", AUGMENTATIONS)
def test_a_grey_picture_stays_grey_and_a_coloured_one_coloured(recipe: str) -> None:
    torch.manual_seed(0)
    coloured = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)
    grey = coloured[:1].expand(3, -1, -1)
    for _ in range(5):
        varied = augmentation(recipe)(grey)
        assert varied.shape == grey.shape
        assert varied.dtype == torch.uint8
        assert varied.is_contiguous()
        assert torch.equal(varied[0], varied[1])
        assert torch.equal(varied[0], varied[2])
        assert not torch.equal(augmentation(recipe)(coloured)[0], augmentation(recipe)(coloured)[1])


def test_augmentation_leaves_the_random_state_of_training_alone(prepared: Prepared) -> None:
    dataset = training_set(prepared)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dataset[Key(0, 0, 0)]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("recipe", AUGMENTATIONS)
def test_every_recipe_keeps_type_and_shape_and_all_but_none_change_the_picture(recipe: str, prepared: Prepared) -> None:
    dataset, plain = (
        training_set(prepared, recipe),
        PlainSet(prepared.data.pixels, prepared.positions("train"), prepared.targets()),
    )
    changed = 0
    for number in range(len(dataset)):
        picture, label, found = dataset[Key(0, number, 0)]
        assert (picture.dtype, picture.shape, label, found) == (torch.uint8, (3, 32, 32), plain[number][1], number)
        changed += not torch.equal(picture, plain[number][0])
    assert changed == 0 if recipe == "none" else changed > 0.9 * len(dataset)


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(TrainError, match="wild: no such augmentation; choose one of none, light"):
        augmentation("wild")


def test_the_command_line_knows_all_recipes_and_architectures_without_importing_torch() -> None:
    assert tuple(augment.RECIPES) == AUGMENTATIONS
    assert tuple(ARCHITECTURES) == ARCHITECTURE_NAMES


def test_a_set_of_pictures_travels_to_a_spawned_worker_without_the_pictures(prepared: Prepared) -> None:
    assert prepared.data.pixels.nbytes > 100_000
    dataset = training_set(prepared)
    travelling = pickle.dumps(dataset)
    assert len(travelling) < 20_000
    assert torch.equal(epoch_of(pickle.loads(travelling), 0), epoch_of(dataset, 0))


def test_seeds_are_spread_over_all_bits_and_differ_with_every_number() -> None:
    seeds = {mix(a, b) for a in range(50) for b in range(50)} | {mix(a) for a in range(50)}
    assert len(seeds) == 2550
    assert 0 <= min(seeds) < 2**56
    assert 2**62 < max(seeds) < 2**63


# --- simulated shift -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shift.SHIFTS)
def test_every_shift_is_the_same_each_time_and_visible(name: str, prepared: Prepared) -> None:
    pixels = torch.from_numpy(np.array(prepared.data.pixels[:6])).permute(0, 3, 1, 2)
    torch.manual_seed(1)
    once = shift.SHIFTS[name](pixels)
    torch.manual_seed(2)
    assert torch.equal(shift.SHIFTS[name](pixels), once)
    assert (once.dtype, once.shape) == (pixels.dtype, pixels.shape)
    assert (once.float() - pixels.float()).abs().mean() > 1


def test_a_picture_is_shifted_by_its_number_whatever_batch_it_is_in(prepared: Prepared) -> None:
    pixels = torch.from_numpy(np.array(prepared.data.pixels[:24])).permute(0, 3, 1, 2)
    numbers = torch.arange(24)
    state = torch.get_rng_state()
    whole = shift.shift_mixed(pixels, numbers)
    assert torch.equal(torch.get_rng_state(), state)
    pieces = [shift.shift_mixed(pixels[i : i + 5], numbers[i : i + 5]) for i in range(0, 24, 5)]
    assert torch.equal(whole, torch.cat(pieces))
    for number, apply in enumerate(shift.SHIFTS.values()):
        assert torch.equal(whole[number], apply(pixels[number : number + 1])[0])
