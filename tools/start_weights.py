"""Make configs/rendered_mice.safetensors: weights that the recipe `small` starts from.

    python tools/start_weights.py [--steps 3000] [--out FILE]

A network of the preset `small` is trained on rendered mice that vary more than any one film: both
coats, four sizes, strong changes of colour, noise, blur and margin. That takes about 20 minutes on
two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

import fasthg
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime import process
from fasthg.runtime.device import choose_device

OUT = Path(__file__).resolve().parent.parent / "configs" / "rendered_mice.safetensors"
CAGES = (
    (("black", "black"), (512, 384)),
    (("black", "white"), (512, 384)),
    (("white", "white"), (384, 384)),
    (("black", "black"), (320, 240)),
)
"""Coats of the two mice and size of the frames, px."""
FRAMES = {"train": 700, "val": 15}
SEED = 100
NEAREST = 0.3
"""Least distance of two mice, body lengths: they cover each other more than usual."""
KEPT = ("fasthg", "step", "parts", "num_stacks", "features", "input_size", "heatmap_size")
"""Of the metadata; the configuration holds paths of the machine."""
CHANGES = {
    "INIT.WEIGHTS": None,
    "LOCATOR": "off",
    "INPUT_SIZE": 128,
    "RANDOM_PADDING_MIN": 0.2,
    "RANDOM_PADDING_MAX": 1.5,
    "DO_COLOR_DISTORTION": 0.8,
    "RANDOM_NOISE_FREQ": 0.3,
    "RANDOM_NOISE_SCALE": 0.03,
    "RANDOM_BLUR_FREQ": 0.3,
    "VALIDATE_EVERY_N_STEPS": 500,
}


def main() -> None:
    """Render, train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    process.configure_process(choose_device("cpu"), deterministic=False)
    with tempfile.TemporaryDirectory() as folder:
        for number, (kinds, size) in enumerate(CAGES):
            write_dataset(
                Path(folder, f"cage{number}"),
                seed=SEED + number,
                frames=FRAMES,
                size=size,
                kinds=kinds,
                nearest=NEAREST,
            )
        result = fasthg.train(
            "small",
            evaluate=False,
            **CHANGES,
            **{f"DATA.{split.upper()}": f"{folder}/cage*/{split}_dataset-*" for split in FRAMES},
            NUM_TRAIN_ITERATIONS=given.steps,
            RUNS_DIR=f"{folder}/runs",
        )
        best = RunFolder(result.path).best
        with safe_open(best, "pt") as file:
            metadata = {key: file.metadata()[key] for key in KEPT}
            names = file.keys()
            save_file({name: file.get_tensor(name) for name in names}, given.out, metadata)
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.2f} MB, step {result.step}")


if __name__ == "__main__":
    main()
