from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.augment import AugmentParams, no_augmentation
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.rng import uniforms
from fasthg.data.sampler import (
    BatchSampler,
    BatchSpec,
    make_crop_transforms,
    replacement_rows,
)
from fasthg.errors import DataError

Make = Callable[..., Config]


def same(first: BatchSpec | AugmentParams, second: BatchSpec | AugmentParams) -> bool:
    pairs = [(getattr(first, f.name), getattr(second, f.name)) for f in fields(first)]
    return all(
        same(a, b)
        if isinstance(a, AugmentParams)
        else a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in pairs
    )


def stock(**given: object) -> Config:
    return Config(**{"BATCH_SIZE": 8, **given})


def test_an_epoch_holds_every_instance_once(mice: RecordIndex) -> None:
    sampler = BatchSampler(mice, stock(), training=True, seed=1)
    assert sampler.batches_per_epoch == 3
    epochs = [np.concatenate([sampler.plan(e * 3 + i).instances for i in range(3)]) for e in (0, 1)]
    for order in epochs:
        assert sorted(order) == list(range(24))
    assert list(epochs[0]) != list(epochs[1])
    other = BatchSampler(mice, stock(), training=True, seed=2)
    assert list(other.plan(0).instances) != list(sampler.plan(0).instances)


def test_batches_run_on_across_epochs(mice: RecordIndex) -> None:
    sampler = BatchSampler(mice, stock(), training=True, seed=1, batch_size=7)
    stream = np.concatenate([sampler.plan(step).instances for step in range(24)])
    assert sampler.batches_per_epoch == 4
    for epoch in stream.reshape(7, 24):
        assert sorted(epoch) == list(range(24))


def test_a_small_data_set_fills_a_batch_with_fresh_draws(mice: RecordIndex) -> None:
    plan = BatchSampler(mice, stock(), training=True, seed=1, batch_size=60).plan(0)
    assert np.bincount(plan.instances).min() >= 2
    for instance in range(24):
        angles = plan.draws.angle[plan.instances == instance]
        assert len(set(angles)) == len(angles)


def test_a_plan_is_a_function_of_its_step(mice: RecordIndex) -> None:
    sampler = BatchSampler(mice, stock(), training=True, seed=1)
    forward = [sampler.plan(step) for step in range(12)]
    fresh = pickle.loads(pickle.dumps(BatchSampler(mice, stock(), training=True, seed=1)))
    for step in (11, 3, 7, 0):
        assert same(fresh.plan(step), forward[step])


def test_draws_follow_the_instance_not_the_batch_size(mice: RecordIndex) -> None:
    small = BatchSampler(mice, stock(), training=True, seed=1, batch_size=4)
    large = BatchSampler(mice, stock(), training=True, seed=1, batch_size=12).plan(0)
    for step in range(3):
        rows = np.arange(step * 4, step * 4 + 4)
        assert same(small.plan(step), large.take(rows))


def test_evaluation_is_in_order_plain_and_ends(mice: RecordIndex) -> None:
    cfg = stock()
    sampler = BatchSampler(mice, cfg, training=False, seed=1, batch_size=10)
    plans = [sampler.plan(step) for step in range(sampler.batches_per_epoch)]
    assert [len(plan) for plan in plans] == [10, 10, 4]
    assert np.concatenate([plan.instances for plan in plans]).tolist() == list(range(24))
    assert (plans[0].draws.pad == np.float32(cfg.LOOSE_BBOX_PAD_FACTOR)).all()
    assert not plans[0].draws.flip.any()
    for step in (3, -1):
        with pytest.raises(IndexError):
            sampler.plan(step)


def test_ranks_share_the_batch_of_one_process(mice: RecordIndex) -> None:
    whole = BatchSampler(mice, stock(), training=True, seed=1, batch_size=15)
    ranks = [
        BatchSampler(mice, stock(), training=True, seed=1, batch_size=5, rank=rank, ranks=3)
        for rank in range(3)
    ]
    for step in (0, 1, 7):
        for rank, sampler in enumerate(ranks):
            part = whole.plan(step).take(np.arange(5 * rank, 5 * rank + 5))
            assert same(sampler.plan(step), part)
    assert {sampler.batches_per_epoch for sampler in ranks} == {whole.batches_per_epoch}


def test_ranks_share_an_evaluation(mice: RecordIndex) -> None:
    seen = []
    for rank in range(5):
        sampler = BatchSampler(
            mice, stock(), training=False, seed=1, batch_size=2, rank=rank, ranks=5
        )
        assert sampler.batches_per_epoch == sampler.stop == (3 if rank < 4 else 2)
        seen += [sampler.plan(step).instances for step in range(sampler.batches_per_epoch)]
    assert sorted(np.concatenate(seen)) == list(range(24))
    idle = BatchSampler(mice, stock(), training=False, seed=1, rank=30, ranks=31)
    assert idle.batches_per_epoch == 0


def test_types_and_shapes(mice: RecordIndex) -> None:
    plan = BatchSampler(mice, stock(), training=True, seed=1).plan(0)
    expected = {
        "instances": ((8,), np.int64),
        "records": ((8,), np.int64),
        "image_to_input": ((8, 2, 3), np.float64),
        "input_to_image": ((8, 2, 3), np.float64),
        "window": ((8, 4), np.int64),
        "smoothing": ((8, 2), np.float32),
        "keypoints": ((8, 7, 2), np.float32),
        "visibility": ((8, 7), np.uint8),
        "sigmas": ((8, 7), np.float32),
        "crop_to_image": ((8, 2, 3), np.float32),
        "area": ((8,), np.float32),
        "crop_area": ((8,), np.float32),
    }
    got = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name != "draws"}
    assert {name: (array.shape, array.dtype) for name, array in got.items()} == expected
    for field in fields(plan.draws):
        assert len(getattr(plan.draws, field.name)) == 8


def test_keypoints_lead_back_to_the_image_and_flips_swap_sides(mice: RecordIndex) -> None:
    cfg = stock()
    plan = BatchSampler(mice, cfg, training=True, seed=1, batch_size=24).plan(0)
    assert plan.draws.flip.any()
    assert not plan.draws.flip.all()
    swapped = np.arange(7)
    for left, right in cfg.PARTS.LEFT_RIGHT_PAIRS:
        swapped[[left, right]] = right, left
    assert (swapped != np.arange(7)).sum() == 4
    back = geometry.apply(plan.keypoints, plan.crop_to_image)
    for row, instance in enumerate(plan.instances):
        parts = swapped if plan.draws.flip[row] else np.arange(7)
        np.testing.assert_allclose(back[row], mice.keypoints[instance][parts], atol=1e-3)
        assert plan.visibility[row].tolist() == mice.visibility[instance][parts].tolist()


def test_parts_without_a_position_have_no_target(mice: RecordIndex, configure: Make) -> None:
    keypoints, visibility = mice.keypoints.copy(), mice.visibility.copy()
    keypoints[0, 3, 0], visibility[0, 3] = np.nan, 2
    visibility[1, 5] = 0
    index = replace(mice, keypoints=keypoints, visibility=visibility)
    plan = BatchSampler(index, configure(), training=False, seed=0).plan(0)
    assert plan.visibility[0, 3] == 0
    assert plan.visibility[1, 5] == 0
    assert np.isnan(plan.keypoints[0, 3, 0])
    assert np.isfinite(plan.keypoints[0, [0, 1, 2, 4, 5, 6]]).all()


def test_sigmas_and_areas(mice: RecordIndex, configure: Make) -> None:
    cfg = configure(LOOSE_BBOX_CROP=False)
    plain = BatchSampler(mice, cfg, training=False, seed=0).plan(0)
    assert (plain.sigmas == np.float32(cfg.PARTS.SIGMAS)).all()
    box = geometry.box_to_pixels(mice.bbox[:8], [512] * 8, [384] * 8)
    sides = box[:, 2:] - box[:, :2]
    np.testing.assert_array_equal(plain.crop_area, sides.prod(axis=1))
    np.testing.assert_array_equal(plain.area, mice.area[:8])

    parts = {**cfg.PARTS.model_dump(), "SCALE_SIGMAS_BY_AREA": True}
    scaled = BatchSampler(
        mice, configure(LOOSE_BBOX_CROP=False, PARTS=parts), training=False, seed=0
    ).plan(0)
    scale = 256 / sides.max(axis=1) * 64 / 256 * np.sqrt(mice.area[:8]) * 2
    np.testing.assert_allclose(scaled.sigmas, plain.sigmas * scale[:, None], rtol=1e-5)


def test_fixed_padding_is_float32_as_the_reference_receives_it() -> None:
    """0.65 of 40 px is 13 px a side; of 0.64999998 a little less, and edges are rounded down."""
    box = np.float32([[200 / 512, 100 / 256, 240 / 512, 140 / 256]])
    for factor, side in ((0.65, 65), (0.5, 60)):
        cfg = Config(LOOSE_BBOX_PAD_FACTOR=factor)
        crops = make_crop_transforms(cfg, box, [512], [256], no_augmentation(cfg, 1))
        assert crops.side.tolist() == [[side, side]]


def test_only_strong_shrinking_is_smoothed_first(mice: RecordIndex, configure: Make) -> None:
    small = configure(INPUT_SIZE=128, HEATMAP_SIZE=32, LOOSE_BBOX_PAD_FACTOR=1.5)
    plan = BatchSampler(mice, small, training=False, seed=0, batch_size=24).plan(0)
    shrink = np.abs(plan.input_to_image[:, [0, 1], [0, 1]])
    expected = np.where(shrink > 2, (shrink - 1) / 2, 0)
    assert (shrink > 2).any()
    assert (shrink < 2).any()
    np.testing.assert_allclose(plan.smoothing, expected, rtol=1e-6)


def test_an_index_without_instances_is_refused(mice: RecordIndex, configure: Make) -> None:
    none = replace(mice, record=mice.record[:0])
    with pytest.raises(DataError, match="train_dataset"):
        BatchSampler(none, configure(), training=True, seed=0)


@pytest.mark.parametrize(
    ("bad", "training", "rows"),
    [
        ([0, 0, 0], True, [0, 1, 2]),
        ([0, 1, 0, 0], True, [0, 2, 2, 3]),
        ([0, 1, 1, 0], True, [0, 3, 3, 3]),
        ([0, 0, 1], True, [0, 1, 0]),
        ([1, 0, 1], False, [1]),
        ([1, 1], True, []),
        ([1, 1], False, []),
    ],
)
def test_rows_that_stand_in(bad: list[int], training: bool, rows: list[int]) -> None:
    assert replacement_rows(np.array(bad, bool), training).tolist() == rows


def test_the_order_of_an_epoch_is_that_of_one_random_number_each(
    mice: RecordIndex, configure: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever is drawn together: saved states count on it.
    monkeypatch.setattr("fasthg.data.sampler._DRAWN_TOGETHER", 7)
    sampler = BatchSampler(mice, configure(), training=True, seed=5)
    for epoch in (0, 1, 2, 70_000, 0):
        place = uniforms(5, 0, epoch, np.arange(len(mice)), 1)[0]
        np.testing.assert_array_equal(sampler._order(epoch), np.argsort(place, kind="stable"))
