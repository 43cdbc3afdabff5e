"""fasthg: a fast trainer of stacked-hourglass networks for animal pose estimation.

    import fasthg

    fasthg.convert("my_project", "tfrecords")        # annotations of DeepLabCut, SLEAP, COCO, MARS
    run = fasthg.train("tfrecords", on_log=print)    # a run folder, evaluated
    model = fasthg.load(run.path)                    # or runs/<name>, or a .safetensors file
    poses = model.predict(image)                     # RGB array in, NumPy arrays out

These names are imported when they are first used, so that `import fasthg` takes no time. The
operators of `fasthg.ops` need none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fasthg.api.conversion import convert
    from fasthg.api.model import Model, load
    from fasthg.api.poses import FramePoses, PoseList, PoseStream
    from fasthg.api.training import StopTraining, Training, train

__all__ = [
    "FramePoses",
    "Model",
    "PoseList",
    "PoseStream",
    "StopTraining",
    "Training",
    "__version__",
    "convert",
    "load",
    "train",
]

_MODULES = {
    "FramePoses": "fasthg.api.poses",
    "Model": "fasthg.api.model",
    "PoseList": "fasthg.api.poses",
    "PoseStream": "fasthg.api.poses",
    "StopTraining": "fasthg.api.training",
    "Training": "fasthg.api.training",
    "convert": "fasthg.api.conversion",
    "load": "fasthg.api.model",
    "train": "fasthg.api.training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fasthg' has no attribute {name!r}")
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "fasthg"):
            raise
        from fasthg.errors import missing_package

        raise missing_package(f"fasthg.{name}", package, "train") from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
