"""Configuration: MARS's YAML, validated, with line numbers in every error."""

from __future__ import annotations

from fasthg.config.document import KeyInfo, describe, dump_config, inert_keys
from fasthg.config.json_schema import json_schema
from fasthg.config.keys import SIGMA_SETS, Parts
from fasthg.config.load import load_config, parse_override, read_document, resolve
from fasthg.config.presets import FOLDER_CONFIG, find_config, preset_names, preset_text
from fasthg.config.schema import Config
from fasthg.config.yaml_lines import Document

__all__ = [
    "FOLDER_CONFIG",
    "SIGMA_SETS",
    "Config",
    "Document",
    "KeyInfo",
    "Parts",
    "describe",
    "dump_config",
    "find_config",
    "inert_keys",
    "json_schema",
    "load_config",
    "parse_override",
    "preset_names",
    "preset_text",
    "read_document",
    "resolve",
]
