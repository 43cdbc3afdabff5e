"""RECIPE: what is chosen from annotations, and that what is given stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fasthg.config import Config
from fasthg.config.keys import Init
from fasthg.config.load import load_config, resolve
from fasthg.config.presets import find_config
from fasthg.config.yaml_lines import parse_document
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.training.finetune import starting_weights
from fasthg.training.recipe import Facts, choose, measure, resolved

CPU = torch.device("cpu")
# Nose, left and right ear, tail base, of an animal that looks to the right; x, y in px.
POSE = np.array([[40.0, 0.0], [25.0, -12.0], [25.0, 12.0], [-40.0, 3.0]])
PAIRS = [[1, 2]]


def index_of(poses):
    """An index of which `measure` reads annotations only."""
    count = len(poses)
    low, high = poses.min(axis=1), poses.max(axis=1)
    index = object.__new__(RecordIndex)
    index.__dict__.update(
        width=np.full(count, 1000),
        height=np.full(count, 500),
        record=np.arange(count),
        bbox=np.concatenate([low / [1000, 500], high / [1000, 500]], axis=1).astype(np.float32),
        keypoints=poses.astype(np.float32),
        visibility=np.full(poses.shape[:2], 2, np.uint8),
    )
    return index


def turned(angles, jitter=1.0):
    rng = np.random.default_rng(0)
    cos, sin = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    turn = np.moveaxis(np.array([[cos, -sin], [sin, cos]]), 2, 0)
    poses = POSE @ turn.transpose(0, 2, 1) + rng.normal(0, jitter, (len(angles), 4, 2))
    return poses + rng.uniform(100, 300, (len(angles), 1, 2))


@pytest.mark.parametrize("middle", [0, 170])
def test_angles_are_measured_about_their_own_middle(middle):
    facts = measure(index_of(turned(middle + np.linspace(-20, 20, 17))), PAIRS)
    assert facts.turned == pytest.approx(20, abs=3)
    assert facts.animals == 17


def test_animals_that_turn_all_ways_turn_up_to_180_degrees():
    facts = measure(index_of(turned(np.arange(0, 360, 15))), PAIRS)
    assert facts.turned > 150


def test_mirrored_poses_fit_where_animals_look_both_ways_alone():
    right = turned(np.linspace(-5, 5, 20))
    assert measure(index_of(right), PAIRS).mirrored < 0.2
    upright = right[..., ::-1]  # seen from above, head to the bottom: left and right are alike
    assert measure(index_of(upright), PAIRS).mirrored > 0.5


def test_poses_that_change_their_form_are_no_turns():
    rng = np.random.default_rng(2)
    reaching = POSE + rng.normal(0, 12, (30, 4, 2)) + 200  # parts move, each for itself
    assert measure(index_of(reaching), []).turned == 0
    turning = turned(rng.uniform(-40, 40, 30), jitter=6.0)
    assert measure(index_of(turning), []).turned > 20


def test_few_or_sparse_poses_say_nothing_of_angles():
    sparse = index_of(turned(np.zeros(20)))
    sparse.visibility[:, 2:] = 0
    assert measure(sparse, PAIRS).turned == 180
    assert measure(index_of(turned(np.zeros(3))), PAIRS).turned == 180


def config(text="", *overrides):
    parts = "PARTS: {NUM_PARTS: 4, NAMES: [a, b, c, d], LEFT_RIGHT_PAIRS: [[1, 2]]}\n"
    return resolve(parse_document(f"RECIPE: small\n{parts}{text}"), "x.yaml", overrides)


FACTS = Facts(animals=100, side=150.0, turned=6.0, mirrored=0.1)


def chosen(config, facts=FACTS):
    return {choice.key: choice.value for choice in choose(facts, config, CPU)}


def test_a_fixed_camera_turns_little_and_mirrors_nothing():
    found = chosen(config())
    assert found["RANDOM_ROTATION_DELTA"] == 15
    assert found["DO_RANDOM_FLIP_LEFT_RIGHT"] == 0
    found = chosen(config(), Facts(100, 150.0, 90.0, 0.1))
    assert found["RANDOM_ROTATION_DELTA"] == 180
    assert found["DO_RANDOM_FLIP_LEFT_RIGHT"] == 0.5


def test_the_input_follows_size_and_number_of_animals_and_the_device():
    gpu = torch.device("cuda")
    for side, on_cpu, on_gpu in ((90.0, 128, 128), (150.0, 192, 192), (400.0, 192, 256)):
        found = [
            {choice.key: choice.value for choice in choose(replace(FACTS, side=side), config(), on)}
            for on in (CPU, gpu)
        ]
        assert [choices["INPUT_SIZE"] for choices in found] == [on_cpu, on_gpu]
    assert chosen(config(), replace(FACTS, animals=20, side=400.0))["INPUT_SIZE"] == 128


def test_given_keys_stay_and_decide_those_that_follow():
    found = chosen(config("NUM_TRAIN_ITERATIONS: 400\n", "INPUT_SIZE=128"))
    assert "INPUT_SIZE" not in found and "NUM_TRAIN_ITERATIONS" not in found
    assert found["HEATMAP_SIZE"] == 32
    assert found["LEARNING_RATE_WARMUP_STEPS"] == 20
    assert chosen(config("HEATMAP_SIZE: 32\nINPUT_SIZE: 128\n"))["RANDOM_ROTATION_DELTA"] == 15


def test_animals_that_turn_all_ways_start_from_rendered_mice():
    turning, network = Facts(100, 150.0, 90.0, 0.1), "FEATURES: 64\nSTEM_FEATURES: 16\n"
    mouse = "PARTS.NAMES=[snout, left_ear, right_ear, tail_base]"
    assert chosen(config(network, mouse), turning)["INIT.WEIGHTS"] == "rendered_mice"
    assert "INIT.WEIGHTS" not in chosen(config(network, mouse))  # a fixed camera
    for given in ("FEATURES=32", "STEM_FEATURES=8", "INIT.WEIGHTS=null"):
        assert "INIT.WEIGHTS" not in chosen(config(network, mouse, given), turning)
    fly = "PARTS.NAMES=[head, wingL, wingR, abdomen]"
    assert "INIT.WEIGHTS" not in chosen(config(network, fly), turning)


def test_animals_seen_from_one_side_have_narrower_targets():
    turning = Facts(100, 150.0, 90.0, 0.1)
    assert chosen(config())["PARTS.SIGMAS"] == [0.75] * 4
    assert "PARTS.SIGMAS" not in chosen(config(), turning)
    assert "PARTS.SIGMAS" not in chosen(config("", "PARTS.SIGMAS=[1, 2, 3, 4]"))


def test_without_a_recipe_nothing_is_chosen():
    plain = Config(DATA={"TRAIN": "nothing-*"})
    assert resolved(plain, CPU) == (plain, [])


def test_the_weights_that_fasthg_brings_are_of_the_recipe_s_network():
    preset = load_config(find_config("small"), ["PARTS.NAMES=[nose, b, c, d, e, f, g]"])
    start = starting_weights(preset.model_copy(update={"INIT": Init(WEIGHTS="rendered_mice")}))
    assert not start.anew and "part base of tail" in start.unused
    assert start.path.stat().st_size < 2e6
    assert start.new_parts == list("bcdefg")


def test_resolved_keys_are_set_and_no_others(tmp_path):
    write_dataset(tmp_path, seed=1, frames={"train": 8})
    pattern = str(tmp_path / "train*")
    before = Config(RECIPE="small", DATA={"TRAIN": pattern}, BATCH_SIZE=4)
    after, lines = resolved(before, CPU)
    new = after.model_fields_set - before.model_fields_set
    keys = {line.split()[1].rstrip(":") for line in lines}
    assert {key.partition(".")[0] for key in keys} | {"PARTS"} == new
    assert after.PARTS.model_fields_set == {"SIGMAS"}
    assert after.RANDOM_ROTATION_DELTA == 180 and after.BATCH_SIZE == 4
    assert resolved(after, CPU) == (after, []), "a resumed run keeps what was chosen"


def test_sigmas_of_a_recipe_have_one_entry_for_each_part_unless_given():
    assert len(config().PARTS.SIGMAS) == 4
    assert config("", "PARTS.SIGMAS=[1, 2, 3, 4]").PARTS.SIGMAS == (1, 2, 3, 4)
