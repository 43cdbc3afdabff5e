"""The reference recipe of `benchmarks/reference`: it computes what fasthg does, and it trains."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from reference.loader import MarsDataset, reference_loader
from reference.network import ReferenceHourglass, enlarge
from reference.training import ReferenceTraining
from reference.tuned import TunedTraining
from samples import WITHOUT_AUGMENTATION
from torch import Tensor

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.opencv_loader import PortableLoader
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.data.sampler import BatchSampler
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.model import StackedHourglass
from fasthg.ops import gaussian_heatmaps

SMALL = {"INPUT_SIZE": 64, "HEATMAP_SIZE": 16, "BATCH_SIZE": 4}
PLAIN = {**WITHOUT_AUGMENTATION, **SMALL}


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> RecordIndex:
    """Five synthetic frames with two mice each."""
    folder = tmp_path_factory.mktemp("mice")
    return RecordIndex.build(write_dataset(folder, seed=3, frames={"train": 5}, size=(192, 160)), 7)


# ---------------------------------------------------------------- network


def copy_weights(ours: StackedHourglass, reference: ReferenceHourglass) -> None:
    """Both make their modules in the order of the network, so tensors match by their place."""

    def moving(network: torch.nn.Module) -> list[Tensor]:
        return [b for name, b in network.named_buffers() if "running" in name]

    trained = [p for p in reference.parameters() if p.requires_grad]
    for tensors in (zip(ours.parameters(), trained), zip(moving(ours), moving(reference))):  # noqa: B905
        for mine, other in tensors:
            assert mine.shape == other.shape
            other.data.copy_(mine)


@pytest.mark.parametrize("training", [False, True])
def test_network_equals_that_of_fasthg(training: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = StackedHourglass(stacks=2, parts=5, features=32, stem_features=8, fused="off")
    for name, tensor in ours.state_dict().items():
        if name.endswith("bias") or "running" in name:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    reference = ReferenceHourglass(stacks=2, parts=5, features=32, stem_features=8)
    copy_weights(ours, reference)
    images = torch.rand(2, 3, 128, 64, generator=generator) * 2 - 1
    for network in (ours, reference):
        network.train(training)
    with torch.no_grad():
        wanted, got = ours(images), reference(images)
    assert [maps.shape for maps in got] == [(2, 5, 32, 16)] * 2
    for maps, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    for buffer, expected in zip(
        [b for b in reference.buffers() if b.dim()], ours.buffers(), strict=True
    ):
        torch.testing.assert_close(buffer, expected, rtol=1e-4, atol=1e-4)


def test_stock_network_has_the_size_of_mars() -> None:
    with torch.device("meta"):
        network = ReferenceHourglass()
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 25_278_904
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in network.modules())
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (convolutions, len(norms)) == (378, 356)
    assert 2 * sum(norm.num_features for norm in norms) == 121_728


# ---------------------------------------------------------------- input


@pytest.mark.parametrize("subpixel", [False, True])
def test_heatmaps_are_those_of_fasthg(mice: RecordIndex, subpixel: bool) -> None:
    """Crop and targets without augmentation, against plan and operator of fasthg."""
    cfg = Config(**PLAIN, SUBPIXEL_TARGETS=subpixel)
    dataset = MarsDataset(mice, cfg)
    plan = BatchSampler(mice, cfg, training=False, seed=0, batch_size=len(mice)).plan(0)
    wanted = gaussian_heatmaps(
        torch.from_numpy(plan.keypoints),
        torch.from_numpy(plan.sigmas),
        cfg.HEATMAP_SIZE,
        torch.from_numpy(plan.visibility),
        subpixel=subpixel,
    )
    got = torch.stack([dataset[item][1] for item in range(len(mice))])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_images_are_those_of_fasthg(mice: RecordIndex) -> None:
    """But for what resampling makes of them: MARS averages areas, fasthg smooths and samples."""
    cfg = Config(**PLAIN)
    sampler = BatchSampler(mice, cfg, training=False, seed=0, batch_size=len(mice))
    (batch,) = PortableLoader(sampler, 0).batches(0, 1)
    wanted = batch.images.permute(0, 3, 1, 2) / 127.5 - 1
    dataset = MarsDataset(mice, cfg)
    got = torch.stack([dataset[item][0] for item in range(len(mice))])
    assert float((got - wanted).abs().mean()) < 0.02
    torch.testing.assert_close(got.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=0, atol=0.005)


def test_invisible_and_unlabelled_parts_have_empty_maps(mice: RecordIndex) -> None:
    dataset = MarsDataset(mice, Config(**PLAIN))
    points = np.full((7, 2), 5.0)
    points[3] = np.nan
    visible = np.array([True, False, True, False, True, True, True])
    maps = dataset.heatmaps(points, visible)
    assert maps.dtype == np.float32
    assert (maps.max(axis=(1, 2)) == visible).all()


def test_a_flip_swaps_left_and_right(mice: RecordIndex) -> None:
    dataset = MarsDataset(mice, Config(**PLAIN | {"DO_RANDOM_FLIP_LEFT_RIGHT": 1.0}))
    image = np.zeros((64, 64, 3), np.uint8)
    points = np.stack([np.arange(7.0), 10 + np.arange(7.0)], axis=1)
    _, points, visible = dataset.augment(image, points, np.arange(7) != 2)
    swapped = np.array([0, 2, 1, 3, 5, 4, 6])
    np.testing.assert_array_equal(points, np.stack([64 - swapped, 10 + swapped], axis=1))
    np.testing.assert_array_equal(visible, swapped != 2)


def test_image_and_heatmaps_turn_and_flip_together(tmp_path: Path) -> None:
    """One bright spot, which is the only part: it stays where its map has its peak."""
    image = np.zeros((200, 240, 3), np.uint8)
    cv2.circle(image, (110, 80), 4, (255, 255, 255), cv2.FILLED)
    centre = np.array([110.5, 80.5]) / [240, 200]
    record = Record(
        encoded=cv2.imencode(".png", image)[1].tobytes(),
        width=240,
        height=200,
        image_id="spot",
        filename="spot.png",
        path="",
        bbox=np.array([[0.25, 0.2, 0.75, 0.8]], np.float32),
        keypoints=np.float32(centre)[None, None],
        visibility=np.array([[2]], np.uint8),
    )
    write_frames(tmp_path / "train_dataset-00000-of-00001", [encode(record)])
    index = RecordIndex.build(tmp_path / "train_dataset-00000-of-00001", 1)
    parts = {"NUM_PARTS": 1, "NAMES": ["spot"], "SIGMAS": [1.5], "LEFT_RIGHT_PAIRS": []}
    dataset = MarsDataset(
        index,
        Config(
            **PLAIN
            | {
                "INPUT_SIZE": 128,
                "HEATMAP_SIZE": 32,
                "PARTS": parts,
                "SUBPIXEL_TARGETS": True,
                "DO_RANDOM_ROTATION": True,
                "DO_RANDOM_FLIP_LEFT_RIGHT": 0.5,
            }
        ),
    )
    places = set()
    for _ in range(20):
        pixels, maps = dataset[0]
        light, map_ = pixels[0] + 1, maps[0]
        y, x = (float((torch.arange(128) + 0.5) @ light.sum(axis) / light.sum()) for axis in (1, 0))
        v, u = (float(torch.arange(32.0) @ map_.sum(axis) / map_.sum()) for axis in (1, 0))
        # In px of the input; a map counts from the corner of its first cell.
        assert abs(x - 4 * u) < 0.5
        assert abs(y - 4 * v) < 0.5
        places.add((round(x), round(y)))
    assert len(places) > 10


@pytest.fixture
def opencv_threads() -> Iterator[None]:
    """OpenCV's pool of two threads, used once; its size is put back after the test."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((1024, 1024, 3), np.float32), (9, 9), 2)
    yield
    cv2.setNumThreads(threads)


@pytest.mark.usefixtures("opencv_threads")
@pytest.mark.parametrize("workers", [0, 2])
def test_loader(mice: RecordIndex, workers: int) -> None:
    """Every augmentation often, in workers that were forked after OpenCV had used its threads."""
    always = {f"RANDOM_{name}_FREQ": 0.5 for name in ("BLUR", "NOISE", "JPEG")}
    cfg = Config(**SMALL, **always)
    runs = []
    for _ in range(2):
        loader = reference_loader(mice, cfg, workers)
        batches = iter(loader)
        runs.append([tuple(t.clone() for t in next(batches)) for _ in range(8)])
        del batches, loader
    for images, maps in runs[0]:
        assert images.shape == (4, 3, 64, 64)
        assert maps.shape == (4, 7, 16, 16)
        assert images.dtype == maps.dtype == torch.float32
        assert images.is_contiguous() and maps.is_contiguous()
        assert float(images.min()) >= -1 and float(images.max()) <= 1
        assert float(images.std()) > 0.05
        assert float(maps.min()) >= 0 and float(maps.max()) <= 1
    # Ten animals, 32 samples: the data set repeats, and no sample does.
    samples = torch.cat([images for images, _ in runs[0]])
    assert len(torch.unique(samples.flatten(1), dim=0)) == 32
    for first, second in zip(*runs, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_an_epoch_holds_each_animal_once(mice: RecordIndex) -> None:
    drawn = iter(reference_loader(mice, Config(**SMALL), 0).sampler)
    for _ in range(3):
        assert sorted(next(drawn) for _ in range(len(mice))) == list(range(len(mice)))


def test_steps_without_counterpart_are_refused(mice: RecordIndex) -> None:
    with pytest.raises(ValueError, match="COLOR_DISTORT_FAST"):
        MarsDataset(mice, Config(COLOR_DISTORT_FAST=True))
    with pytest.raises(ValueError, match="value only for OPTIMIZER"):
        ReferenceTraining(Config(OPTIMIZER="adamw"), torch.device("cpu"))


# ---------------------------------------------------------------- training


@pytest.mark.slow
def test_training_lowers_the_loss(mice: RecordIndex) -> None:
    cfg = Config(
        **PLAIN,
        NUM_STACKS=2,
        FEATURES=16,
        STEM_FEATURES=8,
        HEAD_INIT_SCALE=0.01,
        INITIAL_LEARNING_RATE=1e-4,
        BATCHNORM_DECAY_WARMUP=True,
    )
    training = ReferenceTraining(cfg, torch.device("cpu"))
    images, heatmaps = next(iter(reference_loader(mice, cfg, 0)))
    empty = float(cfg.NUM_STACKS * (heatmaps**2).sum() / 2)
    losses = [training.step(images, heatmaps) for _ in range(4)]
    assert not losses[0].requires_grad
    assert float(losses[0]) == pytest.approx(empty, rel=0.2)
    # A step small enough to follow the gradient lowers the loss of its own batch; what many large
    # ones do depends on the rounding of the processor.
    assert all(float(after) < float(before) for before, after in pairwise(losses))
    for averaged in (False, True):
        maps = training.predict(images, averaged)
        assert maps.shape == heatmaps.shape and not maps.requires_grad
    training.step(images, heatmaps)
    assert training.network.training


def test_step_is_that_of_its_formulas(mice: RecordIndex) -> None:
    """One step from known weights: L2 on convolutions alone, RMSprop, then the averages."""
    cfg = Config(**PLAIN, NUM_STACKS=1, FEATURES=8, STEM_FEATURES=4, WEIGHT_DECAY=0.5)
    training = ReferenceTraining(cfg, torch.device("cpu"))
    images, heatmaps = next(iter(reference_loader(mice, cfg, 0)))
    for norm in training.norms:
        norm.bias.data.fill_(0.3)
    training.averaged.load_state_dict(training.network.state_dict())
    start = {name: t.clone() for name, t in training.network.state_dict().items()}
    loss = training.step(images, heatmaps)
    trained = {n: p for n, p in training.network.named_parameters() if p.requires_grad}
    averages = training.averaged.state_dict()
    for name, value in trained.items():
        gradient = value.grad + (0 if name.endswith("norm.bias") else 0.5) * start[name]
        moved = start[name] - 2.5e-4 * gradient / ((0.1 * gradient**2).sqrt() + 1)
        torch.testing.assert_close(value.detach(), moved, rtol=1e-5, atol=1e-7)
    for name, value in training.network.state_dict().items():
        if value.is_floating_point():
            wanted = 0.1 * start[name] + 0.9 * value  # decay (1 + 0) / (10 + 0)
            torch.testing.assert_close(averages[name], wanted, rtol=1e-5, atol=1e-7)
    training.network.load_state_dict(start)
    (maps,) = training.network(images)
    torch.testing.assert_close(loss, ((maps - heatmaps) ** 2).sum().detach() / 2)


@pytest.mark.parametrize(
    ("precision", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
def test_the_tuned_recipe_computes_the_same(precision: torch.dtype, error: float) -> None:
    cfg = Config(**SMALL, NUM_STACKS=1, FEATURES=16, STEM_FEATURES=8, HEAD_INIT_SCALE=0.01)
    cpu = torch.device("cpu")
    plain, tuned = ReferenceTraining(cfg, cpu), TunedTraining(cfg, cpu, precision)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 64, 64, generator=random) * 2 - 1
    heatmaps = torch.rand(4, 7, 16, 16, generator=random)
    for _ in range(3):
        torch.testing.assert_close(
            tuned.step(images, heatmaps), plain.step(images, heatmaps), rtol=error, atol=0
        )
    maps = tuned.predict(images)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, plain.predict(images), rtol=error, atol=20 * error)
    weight = tuned.network.stacks[0].features[1].path[1].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_compilers_get_an_enlarging_that_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    wanted = enlarge(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    got = enlarge(x)
    assert torch.equal(got, wanted) and got.stride() == wanted.stride()
