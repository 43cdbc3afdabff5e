"""The configuration as a JSON schema, by which editors complete and check YAML files."""

from __future__ import annotations

from typing import Any

from fasthg.config.schema import Config

# As pydantic leaves the bounds of entries of lists, and as JSON schema knows them.
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
# Keys of `types.key` that only fasthg knows, and names of keys in words.
_LEFT_OUT = ("title", "inert", "only_for", "needs")


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a configuration file: keys, types, bounds, meaning with unit.

    It accepts what `load_config` accepts, but for capital letters in choices, and more: two keys
    that contradict each other are found by `load_config` alone.
    """
    schema: dict[str, Any] = _plain(Config.model_json_schema())
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, "title": "fasthg configuration", **schema}


def _plain(node: Any) -> Any:
    """A schema with bounds under their names, and with the reason why a key has no effect."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema: dict[str, Any] = {}
    entries: dict[str, Any] = node
    for name, value in entries.items():
        if name == "properties":  # of a section: names are keys of the configuration
            schema[name] = {key: _plain(inner) for key, inner in value.items()}
        elif name == "default":
            schema[name] = value
        elif name not in _LEFT_OUT:
            schema[_BOUNDS.get(name, name)] = _plain(value)
    if isinstance(node.get("inert"), str):
        schema["description"] = f"{node['description']} No effect: {node['inert']}."
    return schema
