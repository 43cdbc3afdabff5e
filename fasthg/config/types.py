"""Building blocks of the keys: value types, sections, and a field with unit and conditions.

The types are strict only where a slip changes the meaning. YAML turns `"8"` into text, `yes` into a
boolean and `7e5` into a float. A quoted number is refused, because a user who meant a name would
get a count; a float with an integral value is a whole number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StrictBool,
    StrictStr,
)
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Reads(BeforeValidator):
    """A validator before the type's own.

    Attributes:
        accepts: the JSON type of what it accepts beside the type itself.
    """

    accepts: str = ""

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The type or `accepts`: editors must not mark what is read."""
        return {"anyOf": [handler(schema), {"type": self.accepts}]}


def show(value: object, limit: int = 60) -> str:
    """The value as a user would write it in YAML, shortened to `limit` characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"a section with {len(value)} keys"
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(show(item, limit) for item in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def wrong(what: str, remedy: str = "") -> PydanticCustomError:
    """A validation error with its own remedy; without one, the message names the default."""
    # A brace in the template would be a field, so the text is passed in the context.
    text = f"{what}; {remedy}" if remedy else what
    return PydanticCustomError("fasthg", "{text}", {"text": text, "what": what, "remedy": remedy})


def _int(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"expected a whole number, got {show(value)}")
    if isinstance(value, float) and not (math.isfinite(value) and value.is_integer()):
        raise wrong(f"expected a whole number, got {show(value)}")
    return int(value)


def _float(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"expected a number, got {show(value)}")
    if not math.isfinite(value):
        raise wrong(f"expected a finite number, got {show(value)}")
    return float(value)


def _frequency(when_true: float) -> Callable[[object], object]:
    def convert(value: object) -> object:
        if isinstance(value, bool):
            return when_true if value else 0.0
        number = _float(value)
        assert isinstance(number, float)
        if not 0.0 <= number <= 1.0:
            raise wrong(f"a frequency lies in 0..1, got {show(value)}", "0 is never, 1 is always")
        return number

    return convert


def _sequence(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise wrong(f"expected a list, got {show(value)}", "write [first, second, ...]")
    return value


def _sequence_or_none(value: object) -> object:
    return () if value is None else _sequence(value)


def _free_form(value: object) -> object:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong(f"expected a section of keys, got {show(value)}", "indent its keys below it")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _on_off(value: object) -> object:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def local_path(text: str) -> str:
    """A path with `~` and `$VARIABLES` expanded and either separator accepted.

    A project folder moves between Windows and Linux, its configuration with it; on Linux a
    backslash can only be a separator typed on Windows.
    """
    text = os.path.expandvars(os.path.expanduser(text))
    return text.replace("\\", "/") if os.sep == "/" else text


def _patterns(value: object) -> object:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise wrong(f"expected a file pattern or a list of them, got {show(value)}")
    for item in value:
        if not isinstance(item, str) or not item:
            raise wrong(f"expected a file pattern, got {show(item)}", 'write "folder/train_*"')
    return tuple(local_path(item) for item in value)


def _free_text(value: object) -> object:
    if not isinstance(value, str):
        raise wrong(f"expected text, got {show(value)}", "put it in quotes")
    return value


Bool = StrictBool
Text = Annotated[StrictStr, BeforeValidator(_free_text)]
Folder = Annotated[Text, AfterValidator(local_path)]
Int = Annotated[int, BeforeValidator(_int)]
Float = Annotated[float, BeforeValidator(_float)]
Frequency = Annotated[float, Reads(_frequency(1.0), accepts="boolean")]
FlipFrequency = Annotated[float, Reads(_frequency(0.5), accepts="boolean")]
FreeForm = Annotated[dict[str, Any], Reads(_free_form, accepts="null")]
Patterns = Annotated[tuple[str, ...], Reads(_patterns, accepts="string")]
AsList = BeforeValidator(_sequence)
AsOptionalList = Reads(_sequence_or_none, accepts="null")
LowerCase = BeforeValidator(_lower)
# YAML reads a bare `on` or `off` as a boolean.
OnOff = Reads(_on_off, accepts="boolean")


class Section(BaseModel):
    """A frozen group of keys in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def key(
    default: Any,
    description: str,
    *,
    inert: str = "",
    only_for: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """A key of the configuration, as a pydantic field.

    Args:
        default: MARS's stock value; for a key of fasthg's own, what MARS does.
        description: meaning with unit, a sentence of `fasthg config show`.
        inert: why the key never has an effect; such keys are accepted because MARS writes them.
        only_for: another key and its values with which this one has an effect.
        needs: other keys, each of which switches this one off if it is false, 0 or null.
        limits: bounds of the value, as `pydantic.Field` takes them (ge, gt, le, lt, multiple_of,
            min_length).
    """
    conditions = {"inert": inert, "only_for": only_for, "needs": needs}
    extra: Any = {name: value for name, value in conditions.items() if value}
    return Field(default=default, description=description, json_schema_extra=extra, **limits)
