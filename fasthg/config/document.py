"""The configuration as text: resolved YAML, a table of all keys, and keys without effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from fasthg.config.schema import Config
from fasthg.config.types import show
from fasthg.config.yaml_lines import dump_values


def dump_config(cfg: Config) -> str:
    """The resolved configuration as YAML that loads back to an equal Config.

    Keys without effect are left out unless the user set them.
    """
    keep = set(set_keys(cfg))

    def shown(key: str) -> bool:
        return key in keep or inert_reason(key, cfg) is None

    values: dict[str, Any] = {}
    for name, value in cfg.model_dump(mode="json").items():
        if isinstance(getattr(cfg, name), BaseModel) and not inert_reason(name):
            value = {key: inner for key, inner in value.items() if shown(f"{name}.{key}")}
        elif not shown(name):
            continue
        values[name] = value
    return dump_values(values)


def inert_reason(key: str, cfg: Config | None = None) -> str | None:
    """Why a key (dotted in a section) has no effect; None if it has.

    Without a configuration, only what holds in each of them counts.
    """
    name, _, inner = key.partition(".")
    field = Config.model_fields[name]
    fields = [field, type(field.default).model_fields[inner]] if inner else [field]
    for field in fields:
        conditions: Any = field.json_schema_extra or {}
        if reason := conditions.get("inert"):
            return str(reason)
        if cfg is None:
            continue
        if only_for := conditions.get("only_for"):
            other, *values = only_for
            if getattr(cfg, other) not in values:
                return f"{other} is {getattr(cfg, other)}"
        for other in conditions.get("needs", ()):
            value = getattr(cfg, other)
            if not value:
                state = "false" if value is False else "not set" if value in (None, "") else "0"
                return f"{other} is {state}"
    return None


def set_keys(cfg: Config) -> list[str]:
    """Keys that the user set, in the order of the schema, dotted in sections."""
    keys: list[str] = []
    for name, field in Config.model_fields.items():
        if name not in cfg.model_fields_set:
            continue
        section = getattr(cfg, name)
        if inert_reason(name) or not isinstance(field.default, BaseModel):
            keys.append(name)
        else:
            keys += [
                f"{name}.{key}"
                for key in type(section).model_fields
                if key in section.model_fields_set
            ]
    return keys


def inert_keys(cfg: Config) -> list[tuple[str, str]]:
    """(key, reason) of each key that the user set and that has no effect."""
    reasons = ((key, inert_reason(key, cfg)) for key in set_keys(cfg))
    return [(key, reason) for key, reason in reasons if reason is not None]


@dataclass(frozen=True)
class KeyInfo:
    """One row of `fasthg config show`.

    Attributes:
        key: name, dotted in a section.
        type: what to write, in words.
        default: stock value as YAML.
        description: meaning with unit.
        status: "used" or "inert".
        reason: why it is inert; empty for a used key.
    """

    key: str
    type: str
    default: str
    description: str
    status: str
    reason: str


def describe(cfg: Config | None = None) -> list[KeyInfo]:
    """All keys; with a configuration, `status` is that of its values."""
    rows = []
    for key, field in _fields():
        reason = inert_reason(key, cfg)
        rows.append(
            KeyInfo(
                key=key,
                type=_type_name(field.annotation),
                default=show(field.default, limit=1000),
                description=field.description or "",
                status="inert" if reason else "used",
                reason=reason or "",
            )
        )
    return rows


def _fields() -> Iterator[tuple[str, Any]]:
    for name, field in Config.model_fields.items():
        if isinstance(field.default, BaseModel):
            for inner, inner_field in type(field.default).model_fields.items():
                yield f"{name}.{inner}", inner_field
        else:
            yield name, field


_WORDS = {
    bool: "true | false",
    int: "whole number",
    float: "number",
    str: "text",
    type(None): "null",
}


def _type_name(annotation: Any) -> str:
    """What a user may write, in words: `list of number`, `adam | sgd`, `text | null`."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " | ".join(arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type_name(arguments[0])}"
        return "[" + ", ".join(_type_name(argument) for argument in arguments) + "]"
    if origin is dict:
        return "section"
    return " | ".join(_type_name(argument) for argument in arguments)
