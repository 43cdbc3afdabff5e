"""Configurations by name: the presets that fasthg brings, and those in folders of records."""

from __future__ import annotations

from pathlib import Path

from fasthg.errors import ConfigError

FOLDER_CONFIG = "config.yaml"
"""Name of the configuration that a converter writes beside the records."""


def presets_folder() -> Path:
    """Where the presets lie: inside the installed package, or in the checkout's `configs/`."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "configs"


def preset_names() -> list[str]:
    """Names that `find_config` knows, such as `small`, in alphabetical order."""
    return sorted(path.stem for path in presets_folder().glob("*.yaml"))


def preset_text(name: str) -> str:
    """The YAML of a preset, with its comments.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in preset_names():
        raise ConfigError(f"{name}: no preset; use one of {', '.join(preset_names())}")
    return (presets_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def find_weights(text: str) -> Path:
    """The file or run folder that INIT.WEIGHTS names: a path, or weights that fasthg brings."""
    brought = presets_folder() / f"{text}.safetensors"
    return brought if not Path(text).exists() and brought.is_file() else Path(text)


def find_config(text: str | Path) -> Path:
    """The YAML file that a user means.

    Args:
        text: a file; a folder with a config.yaml, as converters write it; or the name of a preset.
            A file or folder of a preset's name goes before the preset.

    Raises:
        ConfigError: there is none.
    """
    path = Path(text)
    if path.is_dir():
        inside = path / FOLDER_CONFIG
        if inside.is_file():
            return inside
        raise ConfigError(
            f"{path}: has no {FOLDER_CONFIG}; `fasthg data convert` writes one beside the records"
        )
    names = preset_names()
    if not path.exists() and str(text) in names:
        return presets_folder() / f"{text}.yaml"
    if not path.exists() and path.stem in names and path.parts[0] == "configs":
        # As documentation writes it, where there is no checkout.
        return presets_folder() / f"{path.stem}.yaml"
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; pass a YAML configuration, a folder of records, or one of the "
            f"presets {', '.join(names)}"
        )
    return path
