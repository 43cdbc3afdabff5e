"""Contradictions between keys whose single values are valid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fasthg.config.keys import Keys, Parts, project_data
from fasthg.config.sides import spelled

STRIDE = 4  # input pixels of a heatmap cell: the stem halves twice
COARSEST = 64  # and four levels of the hourglass halve the heatmap four times more
WIDEST = 10.0  # margin of a crop that leaves the image; an animal is then 1/11 of its side


@dataclass(frozen=True)
class Problem:
    """One contradiction.

    Attributes:
        key: where it is reported, dotted in a section.
        what: its cause.
        remedy: what to change.
        involves: the other keys whose values contradict this one's.
    """

    key: str
    what: str
    remedy: str
    involves: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that contradict each other, the reported one first."""
        return (self.key, *self.involves)


def find_problems(cfg: Keys) -> list[Problem]:
    """All contradictions of a configuration."""
    return [
        *_parts(cfg.PARTS),
        *_flips(cfg),
        *_sizes(cfg),
        *_locator(cfg),
        *_ranges(cfg),
        *_schedule(cfg),
        *_early_stop(cfg),
        *_init(cfg),
        *_data(cfg),
        *_evaluation(cfg),
        *_machine(cfg),
    ]


def _parts(parts: Parts) -> Iterator[Problem]:
    count = parts.NUM_PARTS
    num_parts_keys = ("PARTS.NUM_PARTS",)
    for key, entries in (("NAMES", parts.NAMES), ("SIGMAS", parts.SIGMAS)):
        if len(entries) != count:
            origin = "entries" if key in parts.model_fields_set else "stock entries"
            yield Problem(
                f"PARTS.{key}",
                f"{len(entries)} {origin} for PARTS.NUM_PARTS {count}",
                "give one entry for each part",
                num_parts_keys,
            )
    for name, times in Counter(parts.NAMES).items():
        if times > 1:
            yield Problem(
                "PARTS.NAMES", f"{name!r} is there {times} times", "name each part differently"
            )
    stock = "" if "LEFT_RIGHT_PAIRS" in parts.model_fields_set else "stock "
    seen: set[int] = set()
    for pair in parts.LEFT_RIGHT_PAIRS:
        if max(pair) >= count:
            yield Problem(
                "PARTS.LEFT_RIGHT_PAIRS",
                f"{stock}pair [{pair[0]}, {pair[1]}] points beyond the {count} parts",
                f"indices run from 0 to {count - 1}; [] means no pairs",
                num_parts_keys,
            )
        elif pair[0] == pair[1]:
            yield Problem(
                "PARTS.LEFT_RIGHT_PAIRS",
                f"pair [{pair[0]}, {pair[1]}] pairs a part with itself",
                "give the indices of the left and of the right part",
            )
        elif seen.intersection(pair):
            index = min(seen.intersection(pair))
            yield Problem(
                "PARTS.LEFT_RIGHT_PAIRS",
                f"part {index} is in more than one pair",
                "list each part at most once",
            )
        seen.update(pair)
    for bone in parts.SKELETON:
        if max(bone) >= count or bone[0] == bone[1]:
            yield Problem(
                "PARTS.SKELETON",
                f"[{bone[0]}, {bone[1]}] joins no two of the {count} parts",
                f"give two different indices from 0 to {count - 1}; [] draws no lines",
                num_parts_keys,
            )


_SIDE = re.compile(r"left|right", re.IGNORECASE)


def _mirrored(name: str) -> str:
    """The name with left and right exchanged, lower case, without spaces and underscores."""
    other = {"left": "right", "right": "left"}
    return re.sub(r"[\s_-]", "", _SIDE.sub(lambda m: other[m.group().lower()], name).lower())


def _flips(cfg: Keys) -> Iterator[Problem]:
    """Lateral parts without a partner, whose labels are wrong in a mirrored image."""
    names = cfg.PARTS.NAMES
    if cfg.DO_RANDOM_FLIP_LEFT_RIGHT == 0.0 and not cfg.FLIP_TEST:
        return
    paired = {index for pair in cfg.PARTS.LEFT_RIGHT_PAIRS for index in pair}
    plain = {re.sub(r"[\s_-]", "", name.lower()): index for index, name in enumerate(names)}
    reported: set[int] = set()
    for index, name in enumerate(names):
        if index in paired or index in reported or not spelled(name):
            continue
        partner = plain.get(_mirrored(name))
        if partner is None:
            what = f"{name!r} has no partner on the other side, and images are mirrored"
            remedy = "set DO_RANDOM_FLIP_LEFT_RIGHT: false (and FLIP_TEST: false)"
        else:
            what = f"{name!r} and {names[partner]!r} are not paired, and images are mirrored"
            remedy = f"add [{index}, {partner}], or set DO_RANDOM_FLIP_LEFT_RIGHT: false"
            reported.add(partner)
        yield Problem(
            "PARTS.LEFT_RIGHT_PAIRS",
            what,
            remedy,
            ("PARTS.NAMES", "DO_RANDOM_FLIP_LEFT_RIGHT", "FLIP_TEST"),
        )


def _sizes(cfg: Keys) -> Iterator[Problem]:
    if cfg.INPUT_SIZE % COARSEST:
        below = max(COARSEST, cfg.INPUT_SIZE // COARSEST * COARSEST)
        yield Problem(
            "INPUT_SIZE",
            f"{cfg.INPUT_SIZE} is not a multiple of {COARSEST}, the network's coarsest step",
            f"use {below} or {cfg.INPUT_SIZE // COARSEST * COARSEST + COARSEST}",
        )
    elif cfg.INPUT_SIZE != STRIDE * cfg.HEATMAP_SIZE:
        yield Problem(
            "HEATMAP_SIZE",
            f"{cfg.HEATMAP_SIZE} does not fit INPUT_SIZE {cfg.INPUT_SIZE}, which gives a heatmap "
            f"of {cfg.INPUT_SIZE // STRIDE} cells",
            f"use HEATMAP_SIZE: {cfg.INPUT_SIZE // STRIDE}",
            ("INPUT_SIZE",),
        )


def _locator(cfg: Keys) -> Iterator[Problem]:
    size = cfg.LOCATOR_INPUT_SIZE
    if size is not None and size % COARSEST:
        yield Problem(
            "LOCATOR_INPUT_SIZE",
            f"{size} is not a multiple of {COARSEST}, the network's coarsest step",
            f"use {max(1, round(size / COARSEST)) * COARSEST} or null",
        )


def _ranges(cfg: Keys) -> Iterator[Problem]:
    for stem in ("RANDOM_PADDING", "RANDOM_JPEG_QUALITY"):
        low, high = getattr(cfg, f"{stem}_MIN"), getattr(cfg, f"{stem}_MAX")
        if low > high:
            yield Problem(
                f"{stem}_MIN",
                f"{low} is above {stem}_MAX {high}",
                "exchange the two",
                (f"{stem}_MAX",),
            )
    if cfg.CROP_BORDER == "edge":
        for key in ("LOOSE_BBOX_PAD_FACTOR", "RANDOM_PADDING_MAX"):
            factor = getattr(cfg, key)
            if factor > WIDEST:
                yield Problem(
                    key,
                    f"{factor:g} times the side of the box is added, and CROP_BORDER edge lets it "
                    "leave the image",
                    f"use at most {WIDEST:g}; it is a fraction, not per cent",
                    ("CROP_BORDER",),
                )


def _schedule(cfg: Keys) -> Iterator[Problem]:
    kind = "LEARNING_RATE_DECAY_TYPE"
    if cfg.LEARNING_RATE_DECAY_TYPE == "exponential":
        for key in ("LEARNING_RATE_DECAY_FACTOR", "NUM_EPOCHS_PER_DELAY", "NUM_TRAIN_EXAMPLES"):
            if key not in cfg.model_fields_set:
                default = type(cfg).model_fields[key].default
                yield Problem(
                    kind, f"exponential decay needs {key}", f"set it (MARS: {default:g})", (key,)
                )
    falls_to_end = cfg.LEARNING_RATE_DECAY_TYPE in ("polynomial", "cosine")
    if falls_to_end and cfg.END_LEARNING_RATE > cfg.INITIAL_LEARNING_RATE:
        yield Problem(
            "END_LEARNING_RATE",
            f"{cfg.END_LEARNING_RATE:g} is above INITIAL_LEARNING_RATE "
            f"{cfg.INITIAL_LEARNING_RATE:g}, from which it decays",
            "set a smaller one, such as 0",
            ("INITIAL_LEARNING_RATE", kind),
        )


def _early_stop(cfg: Keys) -> Iterator[Problem]:
    patience, key = cfg.EARLY_STOP_PATIENCE, "EARLY_STOP_PATIENCE"
    if patience is None:
        return
    # A MARS project or the command line may yet name the data.
    if cfg.DATA.TRAIN is not None and cfg.DATA.VAL is None and cfg.MARS_PROJECT is None:
        yield Problem(
            key,
            "counts validations, and DATA.VAL is not set",
            "set DATA.VAL, or EARLY_STOP_PATIENCE: null",
            ("DATA.VAL",),
        )
    every, total = cfg.VALIDATE_EVERY_N_STEPS, cfg.NUM_TRAIN_ITERATIONS
    # The first validation is the best so far; the last step ends the training by itself.
    most = (total - 1) // every - 1
    if patience > most:
        yield Problem(
            key,
            f"{patience} cannot be reached: a validation every {every} of {total} steps",
            f"use at most {most}, lower VALIDATE_EVERY_N_STEPS, or set null"
            if most >= 1
            else "lower VALIDATE_EVERY_N_STEPS, or set null",
            ("VALIDATE_EVERY_N_STEPS", "NUM_TRAIN_ITERATIONS"),
        )


def _init(cfg: Keys) -> Iterator[Problem]:
    frozen, key = cfg.INIT.FREEZE, "INIT.FREEZE"
    if frozen and cfg.INIT.WEIGHTS is None:
        yield Problem(
            key, "random weights would never learn", "give INIT.WEIGHTS", ("INIT.WEIGHTS",)
        )
    stacks = [block.split()[1] for block in frozen if block != "stem"]
    whole_stacks = {block for block in frozen if block != "stem" and not block.endswith("body")}
    beyond = [number for number in stacks if int(number) >= cfg.NUM_STACKS]
    if beyond:
        yield Problem(
            key,
            f"there is no stack {beyond[0]}; NUM_STACKS is {cfg.NUM_STACKS}",
            f"stacks run from 0 to {cfg.NUM_STACKS - 1}",
            ("NUM_STACKS",),
        )
    elif "stem" in frozen and len(whole_stacks) == cfg.NUM_STACKS:
        yield Problem(
            key,
            "nothing is left to train",
            f"leave out a block, or write stack {cfg.NUM_STACKS - 1} body",
            ("NUM_STACKS",),
        )


def _data(cfg: Keys) -> Iterator[Problem]:
    if (cfg.MARS_PROJECT is None) != (cfg.POSE_MODEL is None):
        missing = "POSE_MODEL" if cfg.POSE_MODEL is None else "MARS_PROJECT"
        present = "MARS_PROJECT" if missing == "POSE_MODEL" else "POSE_MODEL"
        yield Problem(
            present, f"needs {missing}", f"set {missing}, or use DATA instead", (missing,)
        )
        return
    # A resolved configuration holds both, and they agree.
    if cfg.MARS_PROJECT and cfg.POSE_MODEL:
        # A project may lack records of a split.
        expected = project_data(cfg.MARS_PROJECT, cfg.POSE_MODEL).model_dump()
        splits = cfg.DATA.model_dump().items()
        if all(patterns in (None, expected[split]) for split, patterns in splits):
            return
        yield Problem(
            "MARS_PROJECT",
            "DATA is given as well, with other files",
            "keep either DATA or MARS_PROJECT",
            ("DATA", "POSE_MODEL"),
        )


def _evaluation(cfg: Keys) -> Iterator[Problem]:
    sigmas = cfg.OKS_SIGMAS
    if not isinstance(sigmas, str) and len(sigmas) != cfg.PARTS.NUM_PARTS:
        yield Problem(
            "OKS_SIGMAS",
            f"{len(sigmas)} numbers for PARTS.NUM_PARTS {cfg.PARTS.NUM_PARTS}",
            "give one for each part, or a named set such as narrow",
            ("PARTS.NUM_PARTS",),
        )
    if cfg.EVAL_CROP == "mars" and not cfg.LOOSE_BBOX_CROP:
        yield Problem(
            "EVAL_CROP",
            "mars is a crop with a margin, and LOOSE_BBOX_CROP is false",
            "set EVAL_CROP: training",
            ("LOOSE_BBOX_CROP",),
        )
    if cfg.EVAL_CROP == "mars" and cfg.LOADER == "dali":
        yield Problem(
            "EVAL_CROP",
            "mars is a crop of the portable loader alone, and LOADER is dali",
            "set LOADER: auto",
            ("LOADER",),
        )


def _machine(cfg: Keys) -> Iterator[Problem]:
    if cfg.RECOMPUTE == "stack" and cfg.STEP == "compile":
        yield Problem(
            "RECOMPUTE",
            "stack does not go with STEP compile, which chooses by itself what to make again",
            "set STEP: auto",
            ("STEP",),
        )
    if cfg.BATCHNORM_SYNC and cfg.STEP == "compile":
        yield Problem(
            "BATCHNORM_SYNC",
            "does not go with STEP compile, which cannot wait for other processes",
            "set STEP: auto",
            ("STEP",),
        )
    if cfg.STEP == "graph" and cfg.DEVICE == "cpu":
        yield Problem("STEP", "graph needs a GPU, and DEVICE is cpu", "set STEP: auto", ("DEVICE",))
