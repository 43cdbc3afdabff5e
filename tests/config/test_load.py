"""Loading: files of MARS, line numbers, overrides, and every kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasthg.config import Config, inert_keys, load_config
from fasthg.errors import ConfigError

STOCK = Path(__file__).with_name("stock_config_train.yaml")


def write(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(path: Path, *overrides: str) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{path.parent}/", "").split("\n")


def test_stock_mars_file_loads_unmodified_and_equals_the_defaults() -> None:
    cfg = load_config(STOCK)
    different = {
        name for name in Config.model_fields if getattr(cfg, name) != getattr(Config(), name)
    }
    # Free-form sections, empty by default because nothing reads them; and MARS's colours, which
    # are the default of no other parts.
    assert different == {"SESSION_CONFIG", "LOSS", "PARTS"}
    colours = cfg.PARTS.COLORS
    assert Config().PARTS.model_copy(update={"COLORS": colours}) == cfg.PARTS and len(colours) == 7
    assert cfg.RANDOM_SEED == 1
    assert cfg.DO_RANDOM_FLIP_LEFT_RIGHT == 0.5
    assert cfg.LOSS["SCALE_FACTORS"][1] == 0.5


def test_stock_mars_file_lists_its_keys_without_effect() -> None:
    reasons = dict(inert_keys(load_config(STOCK)))
    for key in (
        "SESSION_CONFIG",
        "QUEUE_CAPACITY",
        "PARTS.PART_LOSS_ALPHA",
        "BACKGROUND_HEATMAPS",
        "LOSS",
        "FTRL_L1",
        "DROPOUT_KEEP_PROB",
    ):
        assert key in reasons
    assert reasons["ADAM_BETA1"] == "OPTIMIZER is rmsprop"
    assert reasons["END_LEARNING_RATE"] == "LEARNING_RATE_DECAY_TYPE is fixed"
    assert reasons["RANDOM_BBOX_SHIFT_EXTENT"] == "DO_RANDOM_BBOX_SHIFT is 0"
    assert "RMSPROP_DECAY" not in reasons
    assert "MAX_BLUR" not in reasons


def test_misspelt_key_names_line_and_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path, "NUM_STACKS: 8\n\nDO_RANDOM_BLURING: true\n")
    assert faults(path) == [
        "file.yaml:3: DO_RANDOM_BLURING: unknown key; did you mean DO_RANDOM_BLURRING?"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_stacks: 8", "file.yaml:1: num_stacks: unknown key; did you mean NUM_STACKS?"),
        ("SIGMAS: [1]", "file.yaml:1: SIGMAS: unknown key; did you mean PARTS.SIGMAS?"),
        (
            "PARTS: {\n NAMS: [a]}",
            "file.yaml:2: PARTS.NAMS: unknown key; did you mean PARTS.NAMES?",
        ),
        ("QQQ: 1", "file.yaml:1: QQQ: unknown key; `fasthg config show` lists all keys"),
        (
            'BATCH_SIZE: "8"',
            "file.yaml:1: BATCH_SIZE: expected a whole number, got '8'; the default is 8",
        ),
        (
            "BATCH_SIZE: true",
            "file.yaml:1: BATCH_SIZE: expected a whole number, got true; the default is 8",
        ),
        (
            "BATCH_SIZE: 2.5",
            "file.yaml:1: BATCH_SIZE: expected a whole number, got 2.5; the default is 8",
        ),
        ("BATCH_SIZE: 0", "file.yaml:1: BATCH_SIZE: must be at least 1, got 0; the default is 8"),
        (
            "INITIAL_LEARNING_RATE: .nan",
            (
                "file.yaml:1: INITIAL_LEARNING_RATE: expected a finite number, got nan; "
                "the default is 0.00025"
            ),
        ),
        (
            "DO_RANDOM_NOISE: 1",
            (
                "file.yaml:1: DO_RANDOM_NOISE: expected true or false, got 1; "
                "write true or false without quotes"
            ),
        ),
        (
            "RANDOM_NOISE_FREQ: 15",
            (
                "file.yaml:1: RANDOM_NOISE_FREQ: a frequency lies in 0..1, got 15; "
                "0 is never, 1 is always"
            ),
        ),
        (
            "OPTIMIZER: adam_w",
            (
                "file.yaml:1: OPTIMIZER: 'adam_w' is not one of rmsprop, adam, adamw, sgd, "
                "momentum, adagrad, adadelta; did you mean adamw?"
            ),
        ),
        (
            "PARTS: 7",
            "file.yaml:1: PARTS: expected a section of keys, got 7; indent its keys below it",
        ),
        (
            "PARTS:\n  SIGMAS:\n  - 1\n  - 1\n  - -2\n",
            "file.yaml:5: PARTS.SIGMAS[2]: must be above 0, got -2; give a number above 0",
        ),
        (
            "PARTS:\n  LEFT_RIGHT_PAIRS: [[2, 1], [5]]",
            "file.yaml:2: PARTS.LEFT_RIGHT_PAIRS[1][1]: expected two entries; write [left, right]",
        ),
        (
            "PARTS:\n  LEFT_RIGHT_PAIRS: [[2, 1, 0]]",
            "file.yaml:2: PARTS.LEFT_RIGHT_PAIRS[0]: expected two entries; write [left, right]",
        ),
        (
            "PCK_RADII: []",
            (
                "file.yaml:1: PCK_RADII: needs at least 1 entry; "
                "the default is [2.0, 5.0, 10.0, 20.0]"
            ),
        ),
        (
            "DATA: {TRAIN: 3}",
            (
                "file.yaml:1: DATA.TRAIN: expected a file pattern or a list of them, got 3; "
                "the default is null"
            ),
        ),
        (
            "OKS_SIGMAS: tight",
            (
                "file.yaml:1: OKS_SIGMAS: 'tight' is not a set of OKS sigmas; use one of "
                "mouse_top, mouse_front, narrow, moderate, wide, ultrawide, or a list with one "
                "number for each part"
            ),
        ),
        (
            "BATCH_SIZE: 4\nNUM_STACKS: 1\nBATCH_SIZE: 8",
            "file.yaml:3: BATCH_SIZE: repeated, first set in line 1; keep one of the two",
        ),
        ("", "file.yaml: no keys; start from `fasthg config new small`"),
        ("# nothing\n", "file.yaml: no keys; start from `fasthg config new small`"),
        ("- 1\n- 2\n", "file.yaml:1: expected KEY: value lines; see `fasthg config new small`"),
        ("PARTS: &a [*a]", "file.yaml:1: an alias that contains itself; write the value out"),
    ],
)
def test_single_mistakes(tmp_path: Path, text: str, expected: str) -> None:
    assert faults(write(tmp_path, text)) == [expected]


def test_syntax_error_names_the_line(tmp_path: Path) -> None:
    (line,) = faults(write(tmp_path, "NUM_STACKS: 8\nPARTS: {NUM_PARTS: 7\nINPUT_SIZE: 256\n"))
    assert line.startswith("file.yaml:3: ")
    assert line.endswith("; check quotes, brackets and indentation here")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert faults(tmp_path / "none.yaml") == [
        "none.yaml: no such file; pass the path of a YAML configuration"
    ]
    with pytest.raises(ConfigError, match="is a folder; pass the YAML file in it"):
        load_config(tmp_path)


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"NAME: \xff\xfe")
    assert faults(path) == ["file.yaml: not UTF-8 text; save it as UTF-8"]
    path.write_bytes(b"NUM_STACKS: \x01")
    (line,) = faults(path)
    assert line.startswith("file.yaml: ")


def test_all_mistakes_are_listed_at_once_in_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "NUM_STACK: 8\n"
        "INPUT_SIZE: 200\n"
        "BATCH_SIZE: x\n"
        "RANDOM_PADDING_MIN: 0.5\n"
        "RANDOM_PADDING_MAX: 0.4\n"
        "PARTS:\n"
        "  NUM_PARTS: 2\n"
        "  NAMES: [a, b]\n"
        "  SIGMAS: [1, 0]\n"
        "  LEFT_RIGHT_PAIRS: [[0, 2]]\n"
    )
    lines = faults(write(tmp_path, text), "NUM_STACKS=0")
    starts = [line.split(": ")[:2] for line in lines]
    assert starts == [
        ["file.yaml:1", "NUM_STACK"],
        ["file.yaml:2", "INPUT_SIZE"],
        ["file.yaml:3", "BATCH_SIZE"],
        ["file.yaml:4", "RANDOM_PADDING_MIN"],
        ["file.yaml:9", "PARTS.SIGMAS[1]"],
        ["file.yaml:10", "PARTS.LEFT_RIGHT_PAIRS"],
        ["override 'NUM_STACKS=0'", "NUM_STACKS"],
    ]


def test_a_bad_value_does_not_cause_further_complaints(tmp_path: Path) -> None:
    # HEATMAP_SIZE 32 would contradict the stock INPUT_SIZE, but that is not what the user wrote.
    (line,) = faults(write(tmp_path, "INPUT_SIZE: small\nHEATMAP_SIZE: 32\n"))
    assert line.startswith("file.yaml:1: INPUT_SIZE: expected a whole number")


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "INITIAL_LEARNING_RATE: 1e-3\nWEIGHT_DECAY: 2.5e-4\nNUM_TRAIN_ITERATIONS: 7e5\n"
        "ADAM_EPSILON: .1e-7\nRANDOM_SEED: 3.0\n",
    )
    cfg = load_config(path)
    assert cfg.INITIAL_LEARNING_RATE == 1e-3
    assert cfg.WEIGHT_DECAY == 2.5e-4
    assert cfg.NUM_TRAIN_ITERATIONS == 700_000
    assert isinstance(cfg.NUM_TRAIN_ITERATIONS, int)
    assert cfg.ADAM_EPSILON == 1e-8
    assert cfg.RANDOM_SEED == 3


def test_names_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    path = write(tmp_path, "RUN_NAME: e5\nRUNS_DIR: 1e-3x\n")
    cfg = load_config(path)
    assert (cfg.RUN_NAME, cfg.RUNS_DIR) == ("e5", "1e-3x")


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "BACKGROUND_HEATMAPS: &flags\n  ADD_NON_TARGET_PARTS: true\n"
        "LOSS:\n  <<: *flags\n  NO_BACKGROUND: false\n",
    )
    assert load_config(path).LOSS == {"ADD_NON_TARGET_PARTS": True, "NO_BACKGROUND": False}
