"""A Config from a YAML file and `KEY=VALUE` overrides, or one error that lists every fault."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_args

from pydantic import BaseModel, ValidationError

from fasthg.config.checks import Problem
from fasthg.config.here import expand_here
from fasthg.config.schema import Config
from fasthg.config.types import show
from fasthg.config.yaml_lines import Document, YamlFault, parse_document, parse_value
from fasthg.errors import ConfigError

Key = tuple[str | int, ...]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    Args:
        path: a MARS `config_train.yaml` or one of fasthg's.
        overrides: `KEY=VALUE`, dotted for sections (`PARTS.SIGMAS=[1, 1, 1.5]`); the value is YAML.
            Applied in order, and validated with the file as a whole.

    `$HERE` in DATA and INIT.WEIGHTS is the folder of the file: see `config.here`.

    Raises:
        ConfigError: with one line for each fault, `file.yaml:12: KEY: what; remedy`.
    """
    return resolve(read_document(Path(path)), str(path), overrides)


def resolve(document: Document, source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a parsed document, whose values a caller may have completed.

    Args:
        document: from `read_document`; the overrides are written into its values.
        source: its file, for messages; keys without a line are reported there.
        overrides: as in `load_config`.

    Raises:
        ConfigError: as `load_config`.
    """
    faults = _Faults(source, document)
    for text in overrides:
        _apply(document.values, text, faults)
    expand_here(document.values, Path(source).parent)
    _check_names(document.values, Config, (), faults)
    if faults.messages:
        # Faults in the values of the other keys belong in the same message.
        values = _without(document.values, faults.keys)
        _validate(values, faults)
        raise faults.error()
    config = _validate(document.values, faults)
    if config is None:
        raise faults.error()
    return config


def parse_override(text: str) -> tuple[tuple[str, ...], object]:
    """Split `KEY=VALUE` into the key's path and its YAML value.

    Raises:
        ConfigError: there is no `=`, no key, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    names = tuple(key.strip().split("."))
    if not equals or not all(names):
        raise ConfigError(f"override '{text}': expected KEY=VALUE; write e.g. BATCH_SIZE=16")
    try:
        return names, parse_value(value)
    except YamlFault as fault:
        raise ConfigError(f"override '{text}': {fault}") from fault


def read_document(path: Path) -> Document:
    """A configuration file's values and lines, not yet checked.

    Raises:
        ConfigError: it cannot be read or is no YAML.
    """
    try:
        return parse_document(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; pass the path of a YAML configuration") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; pass the YAML file in it") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except YamlFault as fault:
        where = f"{path}:{fault.line}" if fault.line else str(path)
        raise ConfigError(f"{where}: {fault}") from fault


_LAST = 2**31  # overrides are listed after the lines of the file


class _Faults:
    """Messages, each with the place of its key: a line of the file or an override."""

    def __init__(self, file: str, document: Document) -> None:
        self.file = file
        self.lines = document.lines
        self.overrides: dict[Key, str] = {}
        self.keys: list[Key] = []
        self.messages: list[tuple[int, str]] = []

    def add(self, key: Key, text: str, *, also: Sequence[Key] = ()) -> None:
        """Record a fault of a key; `also` are other keys that may show the place."""
        self.keys.append(key)
        line, place = self._place(key, also)
        self.messages.append((line, f"{place}: {_key_name(key)}: {text}"))

    def add_override(self, text: str) -> None:
        """Record a fault of an override that names no key."""
        self.messages.append((_LAST, text))

    def _place(self, key: Key, also: Sequence[Key]) -> tuple[int, str]:
        parents = [key[:end] for end in range(len(key) - 1, 0, -1)]
        for candidate in (key, *also, *parents):
            for end in range(1, len(candidate) + 1):
                if candidate[:end] in self.overrides:
                    return _LAST, f"override '{self.overrides[candidate[:end]]}'"
            if candidate in self.lines:
                return self.lines[candidate], f"{self.file}:{self.lines[candidate]}"
        for names, text in self.overrides.items():
            if names[: len(key)] == key:
                return _LAST, f"override '{text}'"
        return 0, self.file

    def error(self) -> ConfigError:
        """All faults, one per line, in the order of the file."""
        messages = sorted(dict.fromkeys(self.messages), key=lambda item: item[0])
        return ConfigError("\n".join(text for _, text in messages))


def _apply(values: dict[str, Any], text: str, faults: _Faults) -> None:
    try:
        names, value = parse_override(text)
    except ConfigError as error:
        faults.add_override(str(error))
        return
    target = values
    for depth, name in enumerate(names[:-1]):
        inner = target.get(name)
        if inner is None:
            inner = target[name] = {}
        if not isinstance(inner, dict):
            faults.overrides[names] = text
            faults.add(names, f"{_key_name(names[: depth + 1])} is not a section; drop the dot")
            return
        target = inner
    target[names[-1]] = value
    # An override of a whole section replaces the earlier ones inside it.
    for key in [key for key in faults.overrides if key[: len(names)] == names]:
        del faults.overrides[key]
    faults.overrides[names] = text


def _check_names(
    values: Mapping[str, Any], model: type[BaseModel], at: Key, faults: _Faults
) -> None:
    for name, value in values.items():
        field = model.model_fields.get(name)
        if field is None:
            faults.add((*at, name), f"unknown key; {_suggestion(name, model, at)}")
            continue
        section = field.annotation
        if isinstance(value, Mapping) and _is_section(section):
            _check_names(value, section, (*at, name), faults)


def _validate(values: dict[str, Any], faults: _Faults) -> Config | None:
    """The configuration, or None with every fault recorded.

    Keys can be compared only once each is valid by itself. One bad value would hide a contradiction
    elsewhere, so the bad ones are left out and the rest is compared again; contradictions that
    involve a key already reported are dropped.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        bad: list[Key] = []
        problems: list[Problem] = []
        for item in error.errors(include_url=False):
            if item["type"] == "fasthg_keys":
                problems = item["ctx"]["problems"]
                continue
            key = _key(item["loc"])
            bad.append(key)
            faults.add(key, _explain(item, key))
        if bad:
            _validate(_without(values, bad), faults)
        reported = {_key_name(key).partition("[")[0] for key in faults.keys}
        for problem in problems:
            if reported.isdisjoint(problem.keys):
                also = [tuple(name.split(".")) for name in problem.involves]
                where = tuple(problem.key.split("."))
                faults.add(where, f"{problem.what}; {problem.remedy}", also=also)
        return None


def _key(loc: tuple[str | int, ...]) -> Key:
    # Within a list of unlike items pydantic adds the name of the branch it tried.
    return tuple(part for part in loc if isinstance(part, int) or part.isupper())


def _without(values: dict[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """A copy without these keys; for an entry of a list, without the whole list."""
    result = dict(values)
    for key in keys:
        names = [part for part in key if isinstance(part, str)]
        target = result
        for name in names[:-1]:
            inner = target.get(name)
            if not isinstance(inner, dict):
                break
            target[name] = target = dict(inner)
        else:
            target.pop(names[-1], None)
    return result


def _key_name(key: Key) -> str:
    """`PARTS.SIGMAS[2]` for ("PARTS", "SIGMAS", 2)."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    """Whether a key's type is a section with keys of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _suggestion(name: str, model: type[BaseModel], at: Key) -> str:
    """A key of that name in any section, else the nearest in this one, else the full list."""
    for prefix, section in _sections():
        if name.upper() in section.model_fields:
            return f"did you mean {_key_name((*prefix, name.upper()))}?"
    near = difflib.get_close_matches(name.upper(), model.model_fields, n=1, cutoff=0.6)
    if near:
        return f"did you mean {_key_name((*at, near[0]))}?"
    return "`fasthg config show` lists all keys"


def _sections() -> Iterator[tuple[Key, type[BaseModel]]]:
    yield (), Config
    for name, field in Config.model_fields.items():
        if _is_section(field.annotation):
            yield (name,), field.annotation


def _explain(item: Mapping[str, Any], key: Key) -> str:
    """Cause and remedy, in one line, of an error of pydantic."""
    kind, context, value = item["type"], item.get("ctx", {}), show(item["input"])
    remedy = _default(key)
    if kind == "fasthg":
        what, remedy = context["what"], context["remedy"] or remedy
    elif kind == "literal_error":
        choices = _choices(key)
        near = difflib.get_close_matches(str(item["input"]).lower(), choices, n=1, cutoff=0.6)
        what = f"{value} is not one of {', '.join(choices)}"
        remedy = f"did you mean {near[0]}?" if near else remedy
    elif kind == "bool_type":
        what, remedy = f"expected true or false, got {value}", "write true or false without quotes"
    elif kind in _LIMITS:
        word, name = _LIMITS[kind]
        limit = f"{word} {context[name]:g}"
        what = f"must be {limit}, got {value}"
        if isinstance(key[-1], int):
            remedy = f"give a number {limit}"
    elif kind in ("model_type", "model_attributes_type"):
        what, remedy = f"expected a section of keys, got {value}", "indent its keys below it"
    elif kind in ("missing", "too_long"):
        what, remedy = "expected two entries", "write [left, right]"
    elif kind == "too_short":
        what = f"needs at least {context['min_length']} entry"
    else:
        what = f"{item['msg']}, got {value}"
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
        if isinstance(part, int) or not _is_section(model):
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
