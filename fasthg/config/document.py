"""The configuration as text: a resolved YAML file, and a table of all keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from fasthg.config.inert import ALWAYS_INERT, inert_reason, set_keys
from fasthg.config.lines import dump_values
from fasthg.config.schema import Config
from fasthg.config.types import show


def dump_config(cfg: Config) -> str:
    """The resolved configuration as YAML that loads back to an equal Config.

    Keys without effect are left out unless the user set them, so that the file lists what acted.
    """
    keep = set(set_keys(cfg))

    def shown(key: str) -> bool:
        return key in keep or inert_reason(cfg, key) is None

    values: dict[str, Any] = {}
    for name, value in cfg.model_dump(mode="json").items():
        if isinstance(getattr(cfg, name), BaseModel) and name not in ALWAYS_INERT:
            value = {key: inner for key, inner in value.items() if shown(f"{name}.{key}")}
        elif not shown(name):
            continue
        values[name] = value
    return dump_values(values)


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
    """All keys; with a configuration, `status` also tells which of them it makes moot."""
    rows = []
    for key, field in _fields():
        if cfg is None:
            reason = ALWAYS_INERT.get(key) or ALWAYS_INERT.get(key.partition(".")[0])
        else:
            reason = inert_reason(cfg, key)
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
