"""Keys of the optimiser, the learning rate and the length of a run."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fasthg.config.model_keys import Section
from fasthg.config.types import (
    AsOptionalList,
    Flag,
    Folder,
    LowerCase,
    Real,
    Whole,
    show,
    wrong,
)

_BLOCK = re.compile(r"stem|stack (0|[1-9][0-9]*)( body)?")


def _block(value: object) -> object:
    text = " ".join(value.lower().split()) if isinstance(value, str) else ""
    if not _BLOCK.fullmatch(text):
        raise wrong(
            f"expected a block of the network, got {show(value)}",
            "write stem, stack 0 or stack 0 body",
        )
    return text


class Init(Section):
    """Weights that a training starts from, and those it leaves as they are."""

    WEIGHTS: Folder | None = Field(
        default=None,
        description="A .safetensors file or a run folder, of which the best weights, to start "
        "from; parts are matched by name. null: random weights.",
    )
    FREEZE: Annotated[tuple[Annotated[str, BeforeValidator(_block)], ...], AsOptionalList] = Field(
        default=(),
        description="Blocks of WEIGHTS that stay as they are, batch norm in inference: stem; stack "
        "N, from 0; stack N body: all of it but its heatmap and remap convolutions.",
    )


Optimizer = Literal["rmsprop", "adam", "adamw", "sgd", "momentum", "adagrad", "adadelta"]
DecayType = Literal["fixed", "exponential", "polynomial", "cosine"]


def _refuse_ftrl(value: object) -> object:
    if value == "ftrl":
        raise wrong(
            "ftrl is for sparse linear models and not available",
            "use adagrad, which it extends, or the stock rmsprop",
        )
    return value


class ScheduleKeys(Section):
    """Length of training and the learning rate at each step."""

    INIT: Init = Field(default=Init(), description="Weights to start from.")
    BATCH_SIZE: Whole = Field(default=8, ge=1, description="Instances in one step.")
    NUM_TRAIN_ITERATIONS: Whole = Field(
        default=700_000, ge=1, description="Steps of the whole run."
    )
    NUM_TRAIN_EXAMPLES: Whole = Field(
        default=5577,
        ge=1,
        description="Instances in an epoch, for exponential decay alone; elsewhere they are "
        "counted in the data.",
    )
    RANDOM_SEED: Whole = Field(
        default=1, ge=0, lt=2**63, description="Seed of weights, order and augmentation (no unit)."
    )
    INITIAL_LEARNING_RATE: Real = Field(
        default=2.5e-4, gt=0, description="Learning rate after the warm-up (per step)."
    )
    LEARNING_RATE_DECAY_TYPE: Annotated[DecayType, LowerCase] = Field(
        default="fixed",
        description="fixed; exponential: INITIAL_LEARNING_RATE * LEARNING_RATE_DECAY_FACTOR ** "
        "(step / (NUM_TRAIN_EXAMPLES / BATCH_SIZE * NUM_EPOCHS_PER_DELAY)); polynomial and cosine: "
        "from INITIAL_LEARNING_RATE to END_LEARNING_RATE over NUM_TRAIN_ITERATIONS steps.",
    )
    LEARNING_RATE_WARMUP_STEPS: Whole = Field(
        default=0,
        ge=0,
        description="Steps over which the learning rate first rises in a line from 0.",
    )
    LEARNING_RATE_DECAY_POWER: Real = Field(
        default=1.0, gt=0, description="Exponent of the polynomial decay (no unit)."
    )
    END_LEARNING_RATE: Real = Field(
        default=1e-4, ge=0, description="Learning rate at the end of polynomial and cosine decay."
    )
    LEARNING_RATE_DECAY_FACTOR: Real = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Factor of exponential decay every NUM_EPOCHS_PER_DELAY.",
    )
    NUM_EPOCHS_PER_DELAY: Real = Field(
        default=33.0, gt=0, description="Epochs in which exponential decay applies its factor once."
    )
    LEARNING_RATE_STAIRCASE: Flag = Field(
        default=True, description="Let exponential decay fall in steps (exponent rounded down)."
    )


class OptimizerKeys(Section):
    """The update rule; each optimiser reads its own keys only."""

    OPTIMIZER: Annotated[Optimizer, BeforeValidator(_refuse_ftrl), LowerCase] = Field(
        default="rmsprop",
        description="rmsprop (TensorFlow's: epsilon inside the root), adam, adamw, sgd, momentum, "
        "adagrad or adadelta.",
    )
    LOSS_SCALING: Annotated[Literal["sum", "mean"], LowerCase] = Field(
        default="sum",
        description="sum: over batch, parts, cells and stacks, as MARS; mean: that divided by "
        "batch x parts.",
    )
    GRADIENT_CLIP_NORM: Annotated[Real, Field(gt=0)] | None = Field(
        default=None,
        description="Greatest norm of the whole gradient (loss per weight); null: no limit.",
    )
    WEIGHT_DECAY: Real = Field(
        default=4e-5,
        ge=0,
        description="L2 penalty WEIGHT_DECAY * sum(w^2) / 2 on convolution weights and biases; "
        "with adamw, the decoupled decay.",
    )
    MOVING_AVERAGE_DECAY: Real = Field(
        default=0.9999,
        ge=0,
        lt=1,
        description="Share of the averaged weights kept each step, at most (1 + step) / "
        "(10 + step); 0: no averaging.",
    )
    RMSPROP_DECAY: Real = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Share of the old mean square kept each step (rmsprop).",
    )
    RMSPROP_MOMENTUM: Real = Field(
        default=0.0, ge=0, lt=1, description="Momentum of rmsprop (0..1)."
    )
    RMSPROP_EPSILON: Real = Field(
        default=1.0, gt=0, description="Added to the mean square, inside the root (rmsprop)."
    )
    MOMENTUM: Real = Field(
        default=0.0, ge=0, lt=1, description="Momentum of OPTIMIZER momentum (0..1)."
    )
    ADAM_BETA1: Real = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Share of the old mean gradient kept each step (adam, adamw).",
    )
    ADAM_BETA2: Real = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="Share of the old mean square kept each step (adam, adamw).",
    )
    ADAM_EPSILON: Real = Field(
        default=1e-8, gt=0, description="Added to the root of the mean square (adam, adamw)."
    )
    ADADELTA_RHO: Real = Field(
        default=0.95,
        ge=0,
        lt=1,
        description="Share of the old mean squares kept each step (adadelta).",
    )
    ADAGRAD_INITIAL_ACCUMULATOR_VALUE: Real = Field(
        default=0.1, ge=0, description="First value of the sum of squares (adagrad)."
    )
    OPTIMIZER_EPSILON: Real = Field(
        default=1.0, gt=0, description="Added to the mean squares, inside the roots (adadelta)."
    )
    FTRL_LEARNING_RATE_POWER: Real = Field(default=-0.5, description="Learning rate power of ftrl.")
    FTRL_INITIAL_ACCUMULATOR_VALUE: Real = Field(
        default=0.1, description="First accumulator of ftrl."
    )
    FTRL_L1: Real = Field(default=0.0, description="L1 strength of ftrl.")
    FTRL_L2: Real = Field(default=0.0, description="L2 strength of ftrl.")
