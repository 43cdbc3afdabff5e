"""Configuration: the YAML of MARS, checked, with line numbers in every error."""

from __future__ import annotations

from .document import KeyInfo, describe, dump_config
from .inert import inert_keys
from .load import load_config, parse_override
from .model_keys import Parts
from .run_keys import SIGMA_SETS
from .schema import Config

__all__ = [
    "SIGMA_SETS",
    "Config",
    "KeyInfo",
    "Parts",
    "describe",
    "dump_config",
    "inert_keys",
    "load_config",
    "parse_override",
]
