"""Keys that define the network and its targets: stacks, parts, sizes, initialisation, decoding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fasthg.config.types import (
    AsList,
    AsOptionalList,
    Flag,
    FreeForm,
    LowerCase,
    Real,
    Text,
    Whole,
)


class Section(BaseModel):
    """A frozen group of keys in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Sigma = Annotated[Real, Field(gt=0)]
Pair = Annotated[tuple[Annotated[Whole, Field(ge=0)], Annotated[Whole, Field(ge=0)]], AsList]


class Parts(Section):
    """The keypoints of one animal, in the order of the records."""

    NUM_PARTS: Whole = Field(default=7, ge=1, description="Number of keypoints of an animal.")
    NAMES: Annotated[tuple[Text, ...], AsList] = Field(
        default=(
            "nose",
            "right ear",
            "left ear",
            "top of neck",
            "right rear knee",
            "left rear knee",
            "base of tail",
        ),
        description="Name of each part; NUM_PARTS entries, in the order of the records.",
    )
    LEFT_RIGHT_PAIRS: Annotated[tuple[Pair, ...], AsOptionalList] = Field(
        default=((2, 1), (5, 4)),
        description="Pairs of part indices, from 0, that change places in a mirrored image.",
    )
    SIGMAS: Annotated[tuple[Sigma, ...], AsList] = Field(
        default=(1.5, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0),
        description="Standard deviation of each part's target blob, in heatmap cells; "
        "NUM_PARTS entries.",
    )
    SCALE_SIGMAS_BY_AREA: Flag = Field(
        default=False,
        description="Multiply SIGMAS by the square root of the animal's area, as seen in the "
        "heatmap.",
    )
    COLORS: Annotated[tuple[Text, ...], AsList] = Field(
        min_length=1,
        default=("yellow", "orange", "red", "snow", "magenta", "blueviolet", "green"),
        description="Colour of each part in pictures, as matplotlib names; hues where too few.",
    )
    SYMBOLS: Annotated[tuple[Text, ...], AsOptionalList] = Field(
        default=("o",) * 7, description="Marker of each part in MARS's pictures."
    )
    PART_LOSS_ALPHA: Real = Field(default=100.0, description="Weight of a part loss (no unit).")
    VIS_LOSS_ALPHA: Real = Field(
        default=100.0, description="Weight of a visibility loss (no unit)."
    )


class BackgroundHeatmaps(Section):
    """Maps of what must not be found; MARS computes them and never uses them."""

    ADD_TARGET_LEFT_RIGHT_PAIRS: Flag = Field(
        default=False, description="Add a part's left/right partner to its background map."
    )
    ADD_NON_TARGET_PARTS: Flag = Field(
        default=False, description="Add the visible parts of other animals in the box."
    )
    NON_TARGET_INCLUDE_OCCLUDED: Flag = Field(
        default=False, description="Add the occluded parts of other animals, too."
    )
    ADD_NON_TARGET_LEFT_RIGHT_PAIRS: Flag = Field(
        default=False, description="Add the left/right partners of other animals' parts."
    )


class ModelKeys(Section):
    """Network, targets and decoding."""

    NUM_STACKS: Whole = Field(default=8, ge=1, description="Number of stacked hourglasses.")
    FEATURES: Whole = Field(
        default=256,
        ge=4,
        multiple_of=4,
        description="Channels of an hourglass; inner widths scale with it.",
    )
    STEM_FEATURES: Whole = Field(
        default=64,
        ge=4,
        multiple_of=4,
        description="Channels of the first convolution; the stem's residuals have twice as many.",
    )
    HEAD_INIT_SCALE: Real = Field(
        default=1.0,
        ge=0,
        description="Factor on the initial weights of the heatmap convolutions (no unit); "
        "0.01 keeps short runs from collapsing to zero.",
    )
    PARTS: Parts = Field(default=Parts(), description="The keypoints.")
    HEATMAP_SIZE: Whole = Field(
        default=64, ge=16, description="Side of the square heatmap, in cells; INPUT_SIZE / 4."
    )
    INPUT_SIZE: Whole = Field(
        default=256,
        ge=64,
        description="Side of the square network input, in pixels; a multiple of 64.",
    )
    SUBPIXEL_TARGETS: Flag = Field(
        default=False,
        description="Centre targets on the exact keypoint; false rounds to the nearest cell "
        "(half to even), as MARS.",
    )
    DECODE: Annotated[Literal["dark", "quarter", "argmax", "plateau"], LowerCase] = Field(
        default="dark",
        description="How a heatmap becomes a point: dark (Taylor step on the log map), quarter "
        "(quarter-cell shift), argmax, plateau (MARS's evaluation).",
    )
    BACKGROUND_HEATMAPS: BackgroundHeatmaps = Field(
        default=BackgroundHeatmaps(), description="Maps of left/right partners and other animals."
    )
    LOSS: FreeForm = Field(default={}, description="MARS's loss variants, free-form.")
    BATCHNORM_MOVING_AVERAGE_DECAY: Real = Field(
        default=0.9997,
        ge=0,
        lt=1,
        description="Share of the old moving mean and variance kept each step.",
    )
    BATCHNORM_DECAY_WARMUP: Flag = Field(
        default=False,
        description="Use min(decay, (1 + step) / (10 + step)) for the moving statistics; "
        "runs of a few thousand steps need it.",
    )
    BATCHNORM_SYNC: Flag = Field(
        default=False,
        description="With several processes (torchrun), normalise by the statistics of all their "
        "batches together; false: each by its own, and the moving statistics are their mean.",
    )
    BATCHNORM_EPSILON: Real = Field(
        default=0.001,
        gt=0,
        description="Added to the variance in batch normalisation (variance units).",
    )
    LABEL_SMOOTHING: Real = Field(default=0.0, description="Amount of label smoothing (fraction).")
    DROPOUT_KEEP_PROB: Real = Field(
        default=0.8, description="Share of activations kept by dropout."
    )
