"""Configuration: the YAML of MARS, checked, with line numbers in every error."""

from __future__ import annotations

from fasthg.config.document import KeyInfo, describe, dump_config
from fasthg.config.inert import inert_keys
from fasthg.config.lines import Document
from fasthg.config.load import load_config, parse_override, read_document, resolve
from fasthg.config.model_keys import Parts
from fasthg.config.run_keys import SIGMA_SETS
from fasthg.config.schema import Config

__all__ = [
    "SIGMA_SETS",
    "Config",
    "Document",
    "KeyInfo",
    "Parts",
    "describe",
    "dump_config",
    "inert_keys",
    "load_config",
    "parse_override",
    "read_document",
    "resolve",
]
