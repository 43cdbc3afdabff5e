"""Keys that say where the records are and how an image becomes a training instance."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field

from fasthg.config.model_keys import Section
from fasthg.config.types import (
    Flag,
    FlipFrequency,
    Folder,
    Frequency,
    LowerCase,
    Patterns,
    Real,
    Text,
    Whole,
)


class Data(Section):
    """TFRecord files of each split, relative to the current directory."""

    TRAIN: Patterns | None = Field(
        default=None,
        description="TFRecord files to train on: a glob or a list of globs, relative to the "
        "current directory; ~ and $VARIABLES are expanded.",
    )
    VAL: Patterns | None = Field(
        default=None, description="TFRecord files that choose the best weights; as TRAIN."
    )
    TEST: Patterns | None = Field(
        default=None, description="TFRecord files of the final evaluation; as TRAIN."
    )


def project_data(project: str, model: str) -> Data:
    """TFRecord patterns of one pose model in a MARS project folder."""
    folder = PurePath(project) / "pose" / f"{model}_tfrecords_pose"
    return Data(
        TRAIN=((folder / "train_dataset-*").as_posix(),),
        VAL=((folder / "val_dataset-*").as_posix(),),
        TEST=((folder / "test_dataset-*").as_posix(),),
    )


class DataKeys(Section):
    """Records, loader and crop."""

    DATA: Data = Field(default=Data(), description="TFRecord files of each split.")
    MARS_PROJECT: Folder | None = Field(
        default=None,
        description="Folder of a MARS project; with POSE_MODEL it stands for DATA: "
        "pose/<POSE_MODEL>_tfrecords_pose/{train,val,test}_dataset-*.",
    )
    POSE_MODEL: Text | None = Field(
        default=None,
        description="Name of the pose model in MARS_PROJECT, as in its project_config.yaml.",
    )
    LOADER: Annotated[Literal["auto", "portable", "dali"], LowerCase] = Field(
        default="auto",
        description="Image pipeline: dali, portable (OpenCV in its own processes), or auto: dali "
        "on a GPU where it can be imported, else portable.",
    )
    NUM_INPUT_THREADS: Whole = Field(
        default=4,
        ge=0,
        description="CPU threads (dali) or processes (portable) that decode and augment images; 0: "
        "the training process itself.",
    )
    QUEUE_CAPACITY: Whole = Field(
        default=2000, description="Length of TensorFlow's queue, in instances."
    )
    QUEUE_MIN: Whole = Field(default=200, description="Least filling of that queue, in instances.")
    LOOSE_BBOX_CROP: Flag = Field(
        default=True, description="Crop with a margin around the bounding box."
    )
    LOOSE_BBOX_PAD_FACTOR: Real = Field(
        default=0.65,
        ge=0,
        description="That margin, both sides together, as a fraction of the box side.",
    )


class AugmentKeys(Section):
    """Random changes of training instances; a frequency is a share of instances, 0..1."""

    DO_RANDOM_PADDING: Flag = Field(
        default=True, description="Draw the margin of the crop at random."
    )
    RANDOM_PADDING_FREQ: Frequency = Field(
        default=1.0, description="Share of instances with a random margin (0..1)."
    )
    RANDOM_PADDING_MIN: Real = Field(
        default=0.1, ge=0, description="Least margin, fraction of the side."
    )
    RANDOM_PADDING_MAX: Real = Field(
        default=0.65, ge=0, description="Greatest margin, fraction of the side."
    )
    DO_RANDOM_BLURRING: Flag = Field(default=True, description="Blur with a 5x5 Gaussian.")
    RANDOM_BLUR_FREQ: Frequency = Field(
        default=0.15, description="Share of instances blurred (0..1)."
    )
    MAX_BLUR: Whole = Field(
        default=2,
        ge=1,
        le=20,
        description="Greatest sigma of the blur, in input pixels; drawn from 1..MAX_BLUR.",
    )
    DO_RANDOM_NOISE: Flag = Field(default=True, description="Add one plane of Gaussian noise.")
    RANDOM_NOISE_FREQ: Frequency = Field(
        default=0.15, description="Share of instances with noise (0..1)."
    )
    RANDOM_NOISE_SCALE: Real = Field(
        default=0.0125, ge=0, description="Standard deviation of the noise, as a fraction of 255."
    )
    DO_RANDOM_ROTATION: Flag = Field(default=True, description="Turn the crop about its centre.")
    RANDOM_ROTATION_FREQ: Frequency = Field(
        default=1.0, description="Share of instances rotated (0..1)."
    )
    RANDOM_ROTATION_DELTA: Real = Field(
        default=180.0, ge=0, le=360, description="Greatest angle either way, in degrees."
    )
    DO_JPEG_ARTIFACTS: Flag = Field(default=True, description="Compress the crop as JPEG.")
    RANDOM_JPEG_FREQ: Frequency = Field(
        default=0.25, description="Share of instances compressed (0..1)."
    )
    RANDOM_JPEG_QUALITY_MIN: Whole = Field(
        default=25, ge=1, le=100, description="Least JPEG quality (1..100)."
    )
    RANDOM_JPEG_QUALITY_MAX: Whole = Field(
        default=100, ge=1, le=100, description="Greatest JPEG quality (1..100), included."
    )
    DO_RANDOM_FLIP_LEFT_RIGHT: FlipFrequency = Field(
        default=0.5,
        description="Share of instances mirrored (0..1), LEFT_RIGHT_PAIRS swapped; true is 0.5.",
    )
    DO_RANDOM_BBOX_SHIFT: Frequency = Field(
        default=0.0,
        description="Share of instances whose box edges move outwards (0..1); true is 1.",
    )
    RANDOM_BBOX_SHIFT_EXTENT: Real = Field(
        default=4.0, ge=0, description="Greatest move of an edge, in image pixels."
    )
    DO_COLOR_DISTORTION: Frequency = Field(
        default=0.5, description="Share of instances with changed colours (0..1); true is 1."
    )
    COLOR_DISTORT_FAST: Flag = Field(
        default=False, description="Change brightness and saturation only, not gamma and contrast."
    )
