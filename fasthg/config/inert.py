"""Keys that a user set and that change nothing, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fasthg.config.schema import Config

# Accepted because MARS writes them; each reason says where the duty went.
ALWAYS_INERT: dict[str, str] = {
    "SESSION_CONFIG": "settings of a TensorFlow session; there is none here",
    "QUEUE_CAPACITY": "the loader needs no queue: each batch is planned from the step number",
    "QUEUE_MIN": "every epoch is a full permutation of the data",
    "LABEL_SMOOTHING": "for classification; heatmaps have no class labels",
    "DROPOUT_KEEP_PROB": "the network has no dropout",
    "PARTS.PART_LOSS_ALPHA": "of a loss that MARS does not use either",
    "PARTS.VIS_LOSS_ALPHA": "of a loss that MARS does not use either",
    "PARTS.SYMBOLS": "pictures draw every part as a dot",
    "BACKGROUND_HEATMAPS": "MARS's loss ignores these maps, and so they are not computed",
    "LOSS": "of a loss that MARS does not use either; every stack counts equally",
    "FTRL_LEARNING_RATE_POWER": "ftrl is not available",
    "FTRL_INITIAL_ACCUMULATOR_VALUE": "ftrl is not available",
    "FTRL_L1": "ftrl is not available",
    "FTRL_L2": "ftrl is not available",
}


def _optimizer(*names: str) -> Callable[[Config], str | None]:
    def reason(cfg: Config) -> str | None:
        return None if cfg.OPTIMIZER in names else f"OPTIMIZER is {cfg.OPTIMIZER}"

    return reason


def _decay(*kinds: str) -> Callable[[Config], str | None]:
    def reason(cfg: Config) -> str | None:
        kind = cfg.LEARNING_RATE_DECAY_TYPE
        return None if kind in kinds else f"LEARNING_RATE_DECAY_TYPE is {kind}"

    return reason


def _switch(key: str, frequency: str = "") -> Callable[[Config], str | None]:
    """Moot where the switch is off (false, or a frequency of 0), or its frequency is 0."""

    def reason(cfg: Config) -> str | None:
        for name in (key, frequency):
            value = getattr(cfg, name) if name else True
            if not value:
                return f"{name} is {'false' if value is False else '0'}"
        return None

    return reason


def _fixed_padding(cfg: Config) -> str | None:
    if not cfg.LOOSE_BBOX_CROP:
        return "LOOSE_BBOX_CROP is false"
    return None


def _random_padding(cfg: Config) -> str | None:
    return _fixed_padding(cfg) or _switch("DO_RANDOM_PADDING", "RANDOM_PADDING_FREQ")(cfg)


def _padding_frequency(cfg: Config) -> str | None:
    return _fixed_padding(cfg) or _switch("DO_RANDOM_PADDING")(cfg)


def _project(cfg: Config) -> str | None:
    return None if cfg.MARS_PROJECT else "MARS_PROJECT is not set"


_rmsprop, _adam = _optimizer("rmsprop"), _optimizer("adam", "adamw")
_exponential = _decay("exponential")

SOMETIMES_INERT: dict[str, Callable[[Config], str | None]] = {
    "RMSPROP_DECAY": _rmsprop,
    "RMSPROP_MOMENTUM": _rmsprop,
    "RMSPROP_EPSILON": _rmsprop,
    "MOMENTUM": _optimizer("momentum"),
    "ADAM_BETA1": _adam,
    "ADAM_BETA2": _adam,
    "ADAM_EPSILON": _adam,
    "ADADELTA_RHO": _optimizer("adadelta"),
    "OPTIMIZER_EPSILON": _optimizer("adadelta"),
    "ADAGRAD_INITIAL_ACCUMULATOR_VALUE": _optimizer("adagrad"),
    "END_LEARNING_RATE": _decay("polynomial", "cosine"),
    "LEARNING_RATE_DECAY_POWER": _decay("polynomial"),
    "LEARNING_RATE_DECAY_FACTOR": _exponential,
    "NUM_EPOCHS_PER_DELAY": _exponential,
    "LEARNING_RATE_STAIRCASE": _exponential,
    "NUM_TRAIN_EXAMPLES": _exponential,
    "LOOSE_BBOX_PAD_FACTOR": _fixed_padding,
    "DO_RANDOM_PADDING": _fixed_padding,
    "RANDOM_PADDING_FREQ": _padding_frequency,
    "RANDOM_PADDING_MIN": _random_padding,
    "RANDOM_PADDING_MAX": _random_padding,
    "RANDOM_BLUR_FREQ": _switch("DO_RANDOM_BLURRING"),
    "MAX_BLUR": _switch("DO_RANDOM_BLURRING", "RANDOM_BLUR_FREQ"),
    "RANDOM_NOISE_FREQ": _switch("DO_RANDOM_NOISE"),
    "RANDOM_NOISE_SCALE": _switch("DO_RANDOM_NOISE", "RANDOM_NOISE_FREQ"),
    "RANDOM_ROTATION_FREQ": _switch("DO_RANDOM_ROTATION"),
    "RANDOM_ROTATION_DELTA": _switch("DO_RANDOM_ROTATION", "RANDOM_ROTATION_FREQ"),
    "RANDOM_JPEG_FREQ": _switch("DO_JPEG_ARTIFACTS"),
    "RANDOM_JPEG_QUALITY_MIN": _switch("DO_JPEG_ARTIFACTS", "RANDOM_JPEG_FREQ"),
    "RANDOM_JPEG_QUALITY_MAX": _switch("DO_JPEG_ARTIFACTS", "RANDOM_JPEG_FREQ"),
    "RANDOM_BBOX_SHIFT_EXTENT": _switch("DO_RANDOM_BBOX_SHIFT"),
    "COLOR_DISTORT_FAST": _switch("DO_COLOR_DISTORTION"),
    "POSE_MODEL": _project,
}


def inert_reason(cfg: Config, key: str) -> str | None:
    """Why a key (dotted in a section) has no effect in this configuration; None where it has."""
    if key in ALWAYS_INERT:
        return ALWAYS_INERT[key]
    section = key.partition(".")[0]
    if section in ALWAYS_INERT:
        return ALWAYS_INERT[section]
    condition = SOMETIMES_INERT.get(key)
    return condition(cfg) if condition else None


def set_keys(cfg: Config) -> list[str]:
    """Keys given by the user, in the order of the schema, dotted in sections."""
    keys: list[str] = []
    for name, field in type(cfg).model_fields.items():
        if name not in cfg.model_fields_set:
            continue
        inner = getattr(cfg, name)
        if name in ALWAYS_INERT or not hasattr(field.annotation, "model_fields"):
            keys.append(name)
        else:
            keys += [
                f"{name}.{key}" for key in type(inner).model_fields if key in inner.model_fields_set
            ]
    return keys


def inert_keys(cfg: Config) -> list[tuple[str, str]]:
    """(key, reason) of each key that the user set and that has no effect."""
    found = ((key, inert_reason(cfg, key)) for key in set_keys(cfg))
    return [(key, reason) for key, reason in found if reason is not None]
