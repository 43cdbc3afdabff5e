"""Keys of the machine, the run folder, logging and evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fasthg.config.model_keys import Section
from fasthg.config.types import (
    AsList,
    Flag,
    Folder,
    FreeForm,
    LowerCase,
    OnOff,
    Real,
    Text,
    Whole,
    show,
    wrong,
)

SIGMA_SETS = ("mouse_top", "mouse_front", "narrow", "moderate", "wide", "ultrawide")


def _sigma_set(value: object) -> object:
    if isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int | float) or not item > 0:
                raise wrong(f"expected numbers above 0, got {show(item)}")
        return tuple(float(item) for item in value)
    if isinstance(value, str) and value.lower() in SIGMA_SETS:
        return value.lower()
    raise wrong(
        f"{show(value)} is not a set of OKS sigmas",
        f"use one of {', '.join(SIGMA_SETS)}, or a list with one number for each part",
    )


def _folder_name(value: str) -> str:
    if value in ("", ".", "..") or "/" in value or "\\" in value:
        raise wrong(f"{show(value)} is not the name of a folder", "set RUNS_DIR for its place")
    return value


FolderName = Annotated[Text, AfterValidator(_folder_name)]


class MachineKeys(Section):
    """Device and arithmetic."""

    DEVICE: Annotated[Literal["auto", "cpu", "cuda"], LowerCase] = Field(
        default="auto", description="Where the network runs; auto takes the GPU if there is one."
    )
    PRECISION: Annotated[Literal["auto", "fp32", "bf16", "fp16"], LowerCase] = Field(
        default="auto",
        description="Arithmetic of the network: fp32, bf16 or fp16 (weights stay fp32); "
        "auto: bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU.",
    )
    FUSED: Annotated[Literal["auto", "on", "off"], OnOff, LowerCase] = Field(
        default="auto",
        description="fasthg's operators for whole residuals, batch norm with ReLU, halving, "
        "enlarging and the convolutions between stacks (on) or torch's own (off); auto: each "
        "where it gains time, so whole residuals for large maps on a CPU in fp32 alone (on keeps "
        "less memory everywhere). "
        "Unless off, evaluation folds batch norm into the convolutions.",
    )
    STEP: Annotated[Literal["auto", "eager", "compile", "graph"], LowerCase] = Field(
        default="auto",
        description="How training steps run: eager; graph, captured once as a CUDA graph and "
        "launched whole; compile, torch.compile on torch's own modules whatever FUSED says, on a "
        "GPU captured as well; auto: graph on a GPU, else eager.",
    )
    DETERMINISTIC: Flag = Field(
        default=False,
        description="On a GPU, the same bits from the same steps: torch's deterministic kernels "
        "only, none chosen by time; slower. On a CPU it is always so.",
    )
    RECOMPUTE: Annotated[Literal["none", "stack"], LowerCase] = Field(
        default="none",
        description="stack keeps only each stack's input in training and makes its maps again in "
        "the backward: a third slower, for GPUs with little memory.",
    )
    SESSION_CONFIG: FreeForm = Field(
        default={}, description="Settings of a TensorFlow session, free-form."
    )


class RunKeys(Section):
    """Run folder, checkpoints and logging."""

    RUNS_DIR: Folder = Field(default="runs", description="Folder that holds the run folders.")
    RUN_NAME: FolderName | None = Field(
        default=None, description="Name of the run folder; null takes the file's name and the time."
    )
    LOG_EVERY_N_STEPS: Whole = Field(
        default=10, ge=1, description="Steps between two lines of metrics."
    )
    VALIDATE_EVERY_N_STEPS: Whole = Field(
        default=2000, ge=1, description="Steps between two evaluations on the validation split."
    )
    SAVE_INTERVAL_SECS: Real = Field(
        default=3600.0, ge=0, description="Seconds between two saved training states."
    )
    SAVE_SUMMARY_SECS: Real = Field(
        default=30.0,
        ge=0,
        description="Seconds between two summaries in TensorBoard.",
    )
    MAX_TO_KEEP: Whole = Field(
        default=4, ge=1, description="Number of recent step checkpoints kept."
    )
    KEEP_CHECKPOINT_EVERY_N_HOURS: Real = Field(
        default=3.0, gt=0, description="Hours after which one more checkpoint is kept for good."
    )


class EvaluationKeys(Section):
    """How predictions are made and judged."""

    FLIP_TEST: Flag = Field(
        default=False, description="Average each prediction with that of the mirrored image."
    )
    PIXELS_PER_CM: Annotated[Real, Field(gt=0)] | None = Field(
        default=None, description="Image pixels in a centimetre; null reports pixels only."
    )
    PCK_RADII: Annotated[tuple[Annotated[Real, Field(gt=0)], ...], AsList] = Field(
        min_length=1,
        default=(2.0, 5.0, 10.0, 20.0),
        description="Radii within which a point counts as correct, in image pixels.",
    )
    OKS_SIGMAS: Annotated[str | tuple[float, ...], BeforeValidator(_sigma_set)] = Field(
        default="narrow",
        description="Spread of annotators in OKS, as a fraction of the root of the area: mouse_top "
        "or mouse_front (by part name), narrow .025, moderate .05, wide .1, ultrawide .15, or "
        "NUM_PARTS numbers.",
    )
