"""All keys of the configuration, in sections: type, stock value, meaning and conditions."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fasthg.config.types import (
    AsList,
    AsOptionalList,
    Bool,
    FlipFrequency,
    Float,
    Folder,
    FreeForm,
    Frequency,
    Int,
    LowerCase,
    OnOff,
    Patterns,
    Section,
    Text,
    key,
    show,
    wrong,
)

Sigma = Annotated[Float, Field(gt=0)]
Pair = Annotated[tuple[Annotated[Int, Field(ge=0)], Annotated[Int, Field(ge=0)]], AsList]


class Parts(Section):
    """The keypoints of one animal, in the order of the records."""

    NUM_PARTS: Int = key(7, "Number of keypoints of an animal.", ge=1)
    NAMES: Annotated[tuple[Text, ...], AsList] = key(
        (
            "nose",
            "right ear",
            "left ear",
            "top of neck",
            "right rear knee",
            "left rear knee",
            "base of tail",
        ),
        "Name of each part; NUM_PARTS entries, in the order of the records.",
    )
    LEFT_RIGHT_PAIRS: Annotated[tuple[Pair, ...], AsOptionalList] = key(
        ((2, 1), (5, 4)), "Pairs of part indices, from 0, that change places in a mirrored image."
    )
    SKELETON: Annotated[tuple[Pair, ...], AsOptionalList] = key(
        (), "Pairs of part indices, from 0, that pictures join by a line."
    )
    SIGMAS: Annotated[tuple[Sigma, ...], AsList] = key(
        (1.5, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0),
        "Standard deviation of each part's target blob, in heatmap cells; NUM_PARTS entries.",
    )
    SCALE_SIGMAS_BY_AREA: Bool = key(
        False, "Multiply SIGMAS by the square root of the animal's area, as seen in the heatmap."
    )
    COLORS: Annotated[tuple[Text, ...], AsList] = key(
        (),
        "Colour of each part in pictures, a name or #rrggbb; where too few, fasthg's own palette.",
    )
    SYMBOLS: Annotated[tuple[Text, ...], AsOptionalList] = key(
        ("o",) * 7,
        "Marker of each part in MARS's pictures.",
        inert="pictures draw every part as a dot",
    )
    PART_LOSS_ALPHA: Float = key(
        100.0, "Weight of a part loss (no unit).", inert="of a loss that MARS does not use either"
    )
    VIS_LOSS_ALPHA: Float = key(
        100.0,
        "Weight of a visibility loss (no unit).",
        inert="of a loss that MARS does not use either",
    )


class BackgroundHeatmaps(Section):
    """Maps of what must not be found; MARS computes them and never uses them."""

    ADD_TARGET_LEFT_RIGHT_PAIRS: Bool = key(
        False, "Add a part's left/right partner to its background map."
    )
    ADD_NON_TARGET_PARTS: Bool = key(False, "Add the visible parts of other animals in the box.")
    NON_TARGET_INCLUDE_OCCLUDED: Bool = key(False, "Add the occluded parts of other animals, too.")
    ADD_NON_TARGET_LEFT_RIGHT_PAIRS: Bool = key(
        False, "Add the left/right partners of other animals' parts."
    )


class Data(Section):
    """TFRecord files of each split, relative to the current directory."""

    TRAIN: Patterns | None = key(
        None,
        "TFRecord files to train on: a glob or a list of globs, relative to the current "
        "directory; ~ and $VARIABLES are expanded, $HERE is the folder of the YAML file.",
    )
    VAL: Patterns | None = key(None, "TFRecord files that choose the best weights; as TRAIN.")
    TEST: Patterns | None = key(None, "TFRecord files of the final evaluation; as TRAIN.")


def project_data(project: str, model: str) -> Data:
    """TFRecord patterns of one pose model in a MARS project folder."""
    folder = PurePath(project) / "pose" / f"{model}_tfrecords_pose"
    return Data(
        TRAIN=((folder / "train_dataset-*").as_posix(),),
        VAL=((folder / "val_dataset-*").as_posix(),),
        TEST=((folder / "test_dataset-*").as_posix(),),
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

    WEIGHTS: Folder | None = key(
        None,
        "A .safetensors file or a run folder, of which the best weights, to start from; "
        "$HERE is the folder of the YAML file; rendered_mice: weights that fasthg brings, of mice "
        "seen from above. Parts are matched by name. null: random weights.",
    )
    FREEZE: Annotated[tuple[Annotated[str, BeforeValidator(_block)], ...], AsOptionalList] = key(
        (),
        "Blocks of WEIGHTS that stay as they are, batch norm in inference: stem; stack N, "
        "from 0; stack N body: all of it but its heatmap and remap convolutions.",
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


class Keys(Section):
    """Every key of MARS's `config_train.yaml` and of fasthg, each valid by itself.

    `fasthg.config.Config` adds that the keys agree.
    """

    RECIPE: Annotated[Literal["small"], LowerCase] | None = key(
        None,
        "small chooses from the training data what is not given: INPUT_SIZE, HEATMAP_SIZE, "
        "PARTS.SIGMAS, INIT.WEIGHTS, RANDOM_ROTATION_DELTA, DO_RANDOM_FLIP_LEFT_RIGHT, "
        "NUM_TRAIN_ITERATIONS, LEARNING_RATE_WARMUP_STEPS and VALIDATE_EVERY_N_STEPS. "
        "null: the stock values.",
    )

    # Network, targets and decoding.
    NUM_STACKS: Int = key(8, "Number of stacked hourglasses.", ge=1)
    FEATURES: Int = key(
        256, "Channels of an hourglass; inner widths scale with it.", ge=4, multiple_of=4
    )
    STEM_FEATURES: Int = key(
        64,
        "Channels of the first convolution; the stem's residuals have twice as many.",
        ge=4,
        multiple_of=4,
    )
    HEAD_INIT_SCALE: Float = key(
        1.0,
        "Factor on the initial weights of the heatmap convolutions (no unit); 0.01 keeps "
        "short runs from collapsing to zero.",
        ge=0,
    )
    PARTS: Parts = key(Parts(), "The keypoints.")
    HEATMAP_SIZE: Int = key(64, "Side of the square heatmap, in cells; INPUT_SIZE / 4.", ge=16)
    INPUT_SIZE: Int = key(
        256, "Side of the square network input, in pixels; a multiple of 64.", ge=64
    )
    SUBPIXEL_TARGETS: Bool = key(
        False,
        "Centre targets on the exact keypoint; false rounds to the nearest cell (half to "
        "even), as MARS.",
    )
    DECODE: Annotated[Literal["dark", "quarter", "argmax", "plateau"], LowerCase] = key(
        "dark",
        "How a heatmap becomes a point: dark (Taylor step on the log map), quarter "
        "(quarter-cell shift), argmax, plateau (MARS's evaluation).",
    )
    EVAL_CROP: Annotated[Literal["training", "mars"], LowerCase] = key(
        "training",
        "Crops of fasthg eval: training, those of a training without augmentation; mars, those of "
        "MARS's evaluation: boxes not rounded to whole pixels, the centres of their corner pixels "
        "in the corners of the crop, in float32, by the portable loader.",
    )
    BACKGROUND_HEATMAPS: BackgroundHeatmaps = key(
        BackgroundHeatmaps(),
        "Maps of left/right partners and other animals.",
        inert="MARS's loss ignores these maps, and so they are not computed",
    )
    LOSS: FreeForm = key(
        {},
        "MARS's loss variants, free-form.",
        inert="of a loss that MARS does not use either; every stack counts equally",
    )
    BATCHNORM_MOVING_AVERAGE_DECAY: Float = key(
        0.9997, "Share of the old moving mean and variance kept each step.", ge=0, lt=1
    )
    BATCHNORM_DECAY_WARMUP: Bool = key(
        False,
        "Use min(decay, (1 + step) / (10 + step)) for the moving statistics; runs of a few "
        "thousand steps need it.",
    )
    BATCHNORM_SYNC: Bool = key(
        False,
        "With several processes (torchrun), normalise by the statistics of all their batches "
        "together; false: each by its own, and the moving statistics are their mean.",
    )
    BATCHNORM_EPSILON: Float = key(
        0.001, "Added to the variance in batch normalisation (variance units).", gt=0
    )
    LABEL_SMOOTHING: Float = key(
        0.0,
        "Amount of label smoothing (fraction).",
        inert="for classification; heatmaps have no class labels",
    )
    DROPOUT_KEEP_PROB: Float = key(
        0.8, "Share of activations kept by dropout.", inert="the network has no dropout"
    )

    # Records, loader and crop.
    DATA: Data = key(Data(), "TFRecord files of each split.")
    MARS_PROJECT: Folder | None = key(
        None,
        "Folder of a MARS project; with POSE_MODEL it stands for DATA: "
        "pose/<POSE_MODEL>_tfrecords_pose/{train,val,test}_dataset-*.",
    )
    POSE_MODEL: Text | None = key(
        None,
        "Name of the pose model in MARS_PROJECT, as in its project_config.yaml.",
        needs=("MARS_PROJECT",),
    )
    LOADER: Annotated[Literal["auto", "portable", "dali"], LowerCase] = key(
        "auto",
        "Image pipeline: dali, portable (OpenCV in its own processes), or auto: dali on a "
        "GPU where it can be imported, else portable.",
    )
    NUM_INPUT_THREADS: Int = key(
        4,
        "CPU threads (dali) or processes (portable) that decode and augment images; 0: the "
        "training process itself.",
        ge=0,
    )
    QUEUE_CAPACITY: Int = key(
        2000,
        "Length of TensorFlow's queue, in instances.",
        inert="the loader needs no queue: each batch is planned from the step number",
    )
    QUEUE_MIN: Int = key(
        200,
        "Least filling of that queue, in instances.",
        inert="every epoch is a full permutation of the data",
    )
    LOOSE_BBOX_CROP: Bool = key(True, "Crop with a margin around the bounding box.")
    LOOSE_BBOX_PAD_FACTOR: Float = key(
        0.65,
        "That margin, both sides together, as a fraction of the box side.",
        ge=0,
        needs=("LOOSE_BBOX_CROP",),
    )
    CROP_BORDER: Annotated[Literal["clip", "edge"], LowerCase] = key(
        "clip",
        "Crops at the image border: clip, a margin is at most the distance to the nearer border, "
        "as MARS; edge, crops leave the image and repeat its edge pixels there.",
    )

    # Random changes of training instances; a frequency is a share of instances, 0..1.
    DO_RANDOM_PADDING: Bool = key(
        True, "Draw the margin of the crop at random.", needs=("LOOSE_BBOX_CROP",)
    )
    RANDOM_PADDING_FREQ: Frequency = key(
        1.0,
        "Share of instances with a random margin (0..1).",
        needs=("LOOSE_BBOX_CROP", "DO_RANDOM_PADDING"),
    )
    RANDOM_PADDING_MIN: Float = key(
        0.1,
        "Least margin, fraction of the side.",
        ge=0,
        needs=("LOOSE_BBOX_CROP", "DO_RANDOM_PADDING", "RANDOM_PADDING_FREQ"),
    )
    RANDOM_PADDING_MAX: Float = key(
        0.65,
        "Greatest margin, fraction of the side.",
        ge=0,
        needs=("LOOSE_BBOX_CROP", "DO_RANDOM_PADDING", "RANDOM_PADDING_FREQ"),
    )
    DO_RANDOM_BLURRING: Bool = key(True, "Blur with a 5x5 Gaussian.")
    RANDOM_BLUR_FREQ: Frequency = key(
        0.15, "Share of instances blurred (0..1).", needs=("DO_RANDOM_BLURRING",)
    )
    MAX_BLUR: Int = key(
        2,
        "Greatest sigma of the blur, in input pixels; drawn from 1..MAX_BLUR.",
        ge=1,
        le=20,
        needs=("DO_RANDOM_BLURRING", "RANDOM_BLUR_FREQ"),
    )
    DO_RANDOM_NOISE: Bool = key(True, "Add one plane of Gaussian noise.")
    RANDOM_NOISE_FREQ: Frequency = key(
        0.15, "Share of instances with noise (0..1).", needs=("DO_RANDOM_NOISE",)
    )
    RANDOM_NOISE_SCALE: Float = key(
        0.0125,
        "Standard deviation of the noise, as a fraction of 255.",
        ge=0,
        needs=("DO_RANDOM_NOISE", "RANDOM_NOISE_FREQ"),
    )
    DO_RANDOM_ROTATION: Bool = key(True, "Turn the crop about its centre.")
    RANDOM_ROTATION_FREQ: Frequency = key(
        1.0, "Share of instances rotated (0..1).", needs=("DO_RANDOM_ROTATION",)
    )
    RANDOM_ROTATION_DELTA: Float = key(
        180.0,
        "Greatest angle either way, in degrees.",
        ge=0,
        le=360,
        needs=("DO_RANDOM_ROTATION", "RANDOM_ROTATION_FREQ"),
    )
    DO_JPEG_ARTIFACTS: Bool = key(True, "Compress the crop as JPEG.")
    RANDOM_JPEG_FREQ: Frequency = key(
        0.25, "Share of instances compressed (0..1).", needs=("DO_JPEG_ARTIFACTS",)
    )
    RANDOM_JPEG_QUALITY_MIN: Int = key(
        25,
        "Least JPEG quality (1..100).",
        ge=1,
        le=100,
        needs=("DO_JPEG_ARTIFACTS", "RANDOM_JPEG_FREQ"),
    )
    RANDOM_JPEG_QUALITY_MAX: Int = key(
        100,
        "Greatest JPEG quality (1..100), included.",
        ge=1,
        le=100,
        needs=("DO_JPEG_ARTIFACTS", "RANDOM_JPEG_FREQ"),
    )
    DO_RANDOM_FLIP_LEFT_RIGHT: FlipFrequency = key(
        0.5, "Share of instances mirrored (0..1), LEFT_RIGHT_PAIRS swapped; true is 0.5."
    )
    DO_RANDOM_BBOX_SHIFT: Frequency = key(
        0.0, "Share of instances whose box edges move outwards (0..1); true is 1."
    )
    RANDOM_BBOX_SHIFT_EXTENT: Float = key(
        4.0, "Greatest move of an edge, in image pixels.", ge=0, needs=("DO_RANDOM_BBOX_SHIFT",)
    )
    DO_COLOR_DISTORTION: Frequency = key(
        0.5, "Share of instances with changed colours (0..1); true is 1."
    )
    COLOR_DISTORT_FAST: Bool = key(
        False,
        "Change brightness and saturation only, not gamma and contrast.",
        needs=("DO_COLOR_DISTORTION",),
    )

    # Length of training and the learning rate at each step.
    INIT: Init = key(Init(), "Weights to start from.")
    BATCH_SIZE: Int = key(8, "Instances in one step.", ge=1)
    NUM_TRAIN_ITERATIONS: Int = key(700_000, "Steps of the whole run.", ge=1)
    NUM_TRAIN_EXAMPLES: Int = key(
        5577,
        "Instances in an epoch, for exponential decay alone; elsewhere they are counted in "
        "the data.",
        ge=1,
        only_for=("LEARNING_RATE_DECAY_TYPE", "exponential"),
    )
    RANDOM_SEED: Int = key(1, "Seed of weights, order and augmentation (no unit).", ge=0, lt=2**63)
    INITIAL_LEARNING_RATE: Float = key(2.5e-4, "Learning rate after the warm-up (per step).", gt=0)
    LEARNING_RATE_DECAY_TYPE: Annotated[DecayType, LowerCase] = key(
        "fixed",
        "fixed; exponential: INITIAL_LEARNING_RATE * LEARNING_RATE_DECAY_FACTOR ** (step / "
        "(NUM_TRAIN_EXAMPLES / BATCH_SIZE * NUM_EPOCHS_PER_DELAY)); polynomial and cosine: "
        "from INITIAL_LEARNING_RATE to END_LEARNING_RATE over NUM_TRAIN_ITERATIONS steps.",
    )
    LEARNING_RATE_WARMUP_STEPS: Int = key(
        0,
        "Steps over which the learning rate first rises in a line from 0. Every decay counts its "
        "steps from the end of the warm-up.",
        ge=0,
    )
    LEARNING_RATE_DECAY_POWER: Float = key(
        1.0,
        "Exponent of the polynomial decay (no unit).",
        gt=0,
        only_for=("LEARNING_RATE_DECAY_TYPE", "polynomial"),
    )
    END_LEARNING_RATE: Float = key(
        1e-4,
        "Learning rate at the end of polynomial and cosine decay.",
        ge=0,
        only_for=("LEARNING_RATE_DECAY_TYPE", "polynomial", "cosine"),
    )
    LEARNING_RATE_DECAY_FACTOR: Float = key(
        0.2,
        "Factor of exponential decay every NUM_EPOCHS_PER_DELAY.",
        gt=0,
        le=1,
        only_for=("LEARNING_RATE_DECAY_TYPE", "exponential"),
    )
    NUM_EPOCHS_PER_DELAY: Float = key(
        33.0,
        "Epochs in which exponential decay applies its factor once.",
        gt=0,
        only_for=("LEARNING_RATE_DECAY_TYPE", "exponential"),
    )
    LEARNING_RATE_STAIRCASE: Bool = key(
        True,
        "Let exponential decay fall in steps (exponent rounded down).",
        only_for=("LEARNING_RATE_DECAY_TYPE", "exponential"),
    )

    # The update rule; each optimiser reads its own keys only.
    OPTIMIZER: Annotated[Optimizer, BeforeValidator(_refuse_ftrl), LowerCase] = key(
        "rmsprop",
        "rmsprop (TensorFlow's: epsilon inside the root), adam, adamw, sgd, momentum, "
        "adagrad or adadelta.",
    )
    LOSS_SCALING: Annotated[Literal["sum", "mean"], LowerCase] = key(
        "sum",
        "sum: over batch, parts, cells and stacks, as MARS; mean: that divided by batch x parts.",
    )
    GRADIENT_CLIP_NORM: Annotated[Float, Field(gt=0)] | None = key(
        None, "Greatest norm of the whole gradient (loss per weight); null: no limit."
    )
    WEIGHT_DECAY: Float = key(
        4e-5,
        "L2 penalty WEIGHT_DECAY * sum(w^2) / 2 on convolution weights and biases; with "
        "adamw, the decoupled decay.",
        ge=0,
    )
    MOVING_AVERAGE_DECAY: Float = key(
        0.9999,
        "Share of the averaged weights kept each step, at most (1 + step) / (10 + step); 0: "
        "no averaging.",
        ge=0,
        lt=1,
    )
    RMSPROP_DECAY: Float = key(
        0.9,
        "Share of the old mean square kept each step (rmsprop).",
        ge=0,
        lt=1,
        only_for=("OPTIMIZER", "rmsprop"),
    )
    RMSPROP_MOMENTUM: Float = key(
        0.0, "Momentum of rmsprop (0..1).", ge=0, lt=1, only_for=("OPTIMIZER", "rmsprop")
    )
    RMSPROP_EPSILON: Float = key(
        1.0,
        "Added to the mean square, inside the root (rmsprop).",
        gt=0,
        only_for=("OPTIMIZER", "rmsprop"),
    )
    MOMENTUM: Float = key(
        0.0,
        "Momentum of OPTIMIZER momentum (0..1).",
        ge=0,
        lt=1,
        only_for=("OPTIMIZER", "momentum"),
    )
    ADAM_BETA1: Float = key(
        0.9,
        "Share of the old mean gradient kept each step (adam, adamw).",
        ge=0,
        lt=1,
        only_for=("OPTIMIZER", "adam", "adamw"),
    )
    ADAM_BETA2: Float = key(
        0.99,
        "Share of the old mean square kept each step (adam, adamw).",
        ge=0,
        lt=1,
        only_for=("OPTIMIZER", "adam", "adamw"),
    )
    ADAM_EPSILON: Float = key(
        1e-8,
        "Added to the root of the mean square (adam, adamw).",
        gt=0,
        only_for=("OPTIMIZER", "adam", "adamw"),
    )
    ADADELTA_RHO: Float = key(
        0.95,
        "Share of the old mean squares kept each step (adadelta).",
        ge=0,
        lt=1,
        only_for=("OPTIMIZER", "adadelta"),
    )
    ADAGRAD_INITIAL_ACCUMULATOR_VALUE: Float = key(
        0.1, "First value of the sum of squares (adagrad).", ge=0, only_for=("OPTIMIZER", "adagrad")
    )
    OPTIMIZER_EPSILON: Float = key(
        1.0,
        "Added to the mean squares, inside the roots (adadelta).",
        gt=0,
        only_for=("OPTIMIZER", "adadelta"),
    )
    FTRL_LEARNING_RATE_POWER: Float = key(
        -0.5, "Learning rate power of ftrl.", inert="ftrl is not available"
    )
    FTRL_INITIAL_ACCUMULATOR_VALUE: Float = key(
        0.1, "First accumulator of ftrl.", inert="ftrl is not available"
    )
    FTRL_L1: Float = key(0.0, "L1 strength of ftrl.", inert="ftrl is not available")
    FTRL_L2: Float = key(0.0, "L2 strength of ftrl.", inert="ftrl is not available")

    # Device and arithmetic.
    DEVICE: Annotated[Literal["auto", "cpu", "cuda"], LowerCase] = key(
        "auto", "Where the network runs; auto takes the GPU if there is one."
    )
    PRECISION: Annotated[Literal["auto", "fp32", "bf16", "fp16"], LowerCase] = key(
        "auto",
        "Arithmetic of the network: fp32, bf16 or fp16 (weights stay fp32); auto: on a GPU bf16 "
        "where it multiplies it, else fp16; on a CPU bf16 where a timed convolution gains, else "
        "fp32.",
    )
    FUSED: Annotated[Literal["auto", "on", "off"], OnOff, LowerCase] = key(
        "auto",
        "fasthg's operators for batch norm with ReLU, halving, enlarging and the convolutions "
        "between stacks (on) or torch's own (off); auto: each where it gains time. on also takes "
        "whole residuals as one operator on a GPU in bf16 or fp16, which no GPU has measured. "
        "Unless off, evaluation folds batch norm into the convolutions.",
    )
    STEP: Annotated[Literal["auto", "eager", "compile", "graph"], LowerCase] = key(
        "auto",
        "How training steps run: eager; graph, captured once as a CUDA graph and launched "
        "whole; compile, torch.compile on torch's own modules whatever FUSED says, on a GPU "
        "captured as well; auto: graph on a GPU, else eager.",
    )
    DETERMINISTIC: Bool = key(
        False,
        "On a GPU, the same bits from the same steps: torch's deterministic kernels only, "
        "none chosen by time; slower. On a CPU it is always so.",
    )
    RECOMPUTE: Annotated[Literal["none", "stack"], LowerCase] = key(
        "none",
        "stack keeps only each stack's input in training and makes its maps again in the "
        "backward: a third slower, for GPUs with little memory.",
    )
    SESSION_CONFIG: FreeForm = key(
        {},
        "Settings of a TensorFlow session, free-form.",
        inert="settings of a TensorFlow session; there is none here",
    )

    # Run folder, checkpoints and logging.
    RUNS_DIR: Folder = key("runs", "Folder that holds the run folders.")
    RUN_NAME: FolderName | None = key(
        None, "Name of the run folder; null takes the file's name and the time."
    )
    LOG_EVERY_N_STEPS: Int = key(100, "Steps between two lines of metrics.", ge=1)
    VALIDATE_EVERY_N_STEPS: Int = key(
        2000, "Steps between two evaluations on the validation split.", ge=1
    )
    EARLY_STOP_PATIENCE: Annotated[Int, Field(ge=1)] | None = key(
        None,
        "Validations in a row without a smaller mean error after which the training of poses ends; "
        "null: never. Needs DATA.VAL. Polynomial and cosine decay are planned over "
        "NUM_TRAIN_ITERATIONS: after an early stop the learning rate was never lowered to its end.",
    )
    SAVE_INTERVAL_SECS: Float = key(3000.0, "Seconds between two saved training states.", ge=0)
    SAVE_SUMMARY_SECS: Float = key(30.0, "Seconds between two summaries in TensorBoard.", ge=0)
    MAX_TO_KEEP: Int = key(6, "Number of recent step checkpoints kept.", ge=1)
    KEEP_CHECKPOINT_EVERY_N_HOURS: Float = key(
        3.0, "Hours after which one more checkpoint is kept for good.", gt=0
    )

    # The locator: a small network that finds the animals in whole frames, trained after the other.
    LOCATOR: Annotated[Literal["auto", "off"], OnOff, LowerCase] = key(
        "auto",
        "auto trains a locator from the same records, so that predict needs no boxes, unless the "
        "boxes are the frames themselves; off trains none.",
    )
    LOCATOR_ITERATIONS: Annotated[Int, Field(ge=1)] | None = key(
        None,
        "Training steps of the locator; null takes a third of NUM_TRAIN_ITERATIONS, at most 2000.",
    )
    LOCATOR_FEATURES: Int = key(32, "Channels of the locator's hourglass.", ge=2)
    LOCATOR_INPUT_SIZE: Annotated[Int, Field(ge=64)] | None = key(
        None,
        "Side of the locator's input, in pixels, a multiple of 64; null derives it from the "
        "animals' sizes.",
    )

    # How predictions are made and judged.
    FLIP_TEST: Bool = key(False, "Average each prediction with that of the mirrored image.")
    PIXELS_PER_CM: Annotated[Float, Field(gt=0)] | None = key(
        None, "Image pixels in a centimetre; null reports pixels only."
    )
    PCK_RADII: Annotated[tuple[Annotated[Float, Field(gt=0)], ...], AsList] = key(
        (2.0, 5.0, 10.0, 20.0),
        "Radii within which a point counts as correct, in image pixels.",
        min_length=1,
    )
    OKS_SIGMAS: Annotated[str | tuple[float, ...], BeforeValidator(_sigma_set)] = key(
        "narrow",
        "Spread of annotators in OKS, as a fraction of the root of the area: mouse_top or "
        "mouse_front (by part name), narrow .025, moderate .05, wide .1, ultrawide .15, or "
        "NUM_PARTS numbers.",
    )
