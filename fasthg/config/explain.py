"""Words for a fault: the nearest key, the choices, the limit, the default."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, get_args

from pydantic import BaseModel

from fasthg.config.schema import Config
from fasthg.config.types import show

Key = tuple[str | int, ...]


def key_name(key: Key) -> str:
    """`PARTS.SIGMAS[2]` for ("PARTS", "SIGMAS", 2)."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    """Whether a key's type is a section with keys of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def suggestion(name: str, model: type[BaseModel], at: Key) -> str:
    """A key of that name in any section, else the nearest in this one, else the full list."""
    for prefix, section in _sections():
        if name.upper() in section.model_fields:
            return f"did you mean {key_name((*prefix, name.upper()))}?"
    near = difflib.get_close_matches(name.upper(), model.model_fields, n=1, cutoff=0.6)
    if near:
        return f"did you mean {key_name((*at, near[0]))}?"
    return "`fasthg config show` lists all keys"


def _sections() -> Iterator[tuple[Key, type[BaseModel]]]:
    yield (), Config
    for name, field in Config.model_fields.items():
        if is_section(field.annotation):
            yield (name,), field.annotation


def explain(item: Mapping[str, Any], key: Key) -> str:
    """One line of cause and remedy for an error of pydantic."""
    kind, context, got = item["type"], item.get("ctx", {}), show(item["input"])
    remedy = _default(key)
    if kind == "fasthg":
        what, remedy = context["what"], context["remedy"] or remedy
    elif kind == "literal_error":
        choices = _choices(key)
        near = difflib.get_close_matches(str(item["input"]).lower(), choices, n=1, cutoff=0.6)
        what = f"{got} is not one of {', '.join(choices)}"
        remedy = f"did you mean {near[0]}?" if near else remedy
    elif kind == "bool_type":
        what, remedy = f"expected true or false, got {got}", "write true or false without quotes"
    elif kind in _LIMITS:
        word, name = _LIMITS[kind]
        limit = f"{word} {context[name]:g}"
        what = f"must be {limit}, got {got}"
        if isinstance(key[-1], int):
            remedy = f"give a number {limit}"
    elif kind in ("model_type", "model_attributes_type"):
        what, remedy = f"expected a section of keys, got {got}", "indent its keys below it"
    elif kind in ("missing", "too_long"):
        what, remedy = "expected two entries", "write [left, right]"
    elif kind == "too_short":
        what = f"needs at least {context['min_length']} entry"
    else:
        what = f"{item['msg']}, got {got}"
    return f"{what}; {remedy}"


_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def _field(key: Key) -> Any:
    model: Any = Config
    field = None
    for part in key:
        if isinstance(part, int) or not is_section(model):
            break
        field = model.model_fields.get(part)
        model = field.annotation if field is not None else None
    return field


def _default(key: Key) -> str:
    field = _field(key)
    default = getattr(field, "default", None)
    if field is None or isinstance(default, BaseModel):
        return "see `fasthg config show`"
    return f"the default is {show(default)}"


def _choices(key: Key) -> list[str]:
    return [str(choice) for choice in get_args(_field(key).annotation)]
