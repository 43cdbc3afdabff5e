"""YAML with line numbers: plain Python values, and for each key the line it stands in.

PyYAML follows YAML 1.1, in which `1e-3` is text and a repeated key silently wins. Here `1e-3` is a
number and a repeated key is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

Path = tuple[str | int, ...]


class YamlFault(Exception):
    """Text that cannot be read as YAML.

    Attributes:
        line: line number counted from 1, or None for a fault of the whole text.
    """

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Document:
    """The top-level mapping, and the line (from 1) of each key or list entry by its path."""

    values: dict[str, Any]
    lines: dict[Path, int]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z"),
        list("-+.0123456789"),
    )


def parse_document(text: str) -> Document:
    """Parse a configuration file.

    Raises:
        YamlFault: a syntax error, a repeated key, or a text that is empty or not a mapping.
    """
    loader, node = _compose(text)
    if node is None:
        raise YamlFault("no keys; start from `fasthg config new small`", None)
    if not isinstance(node, yaml.MappingNode):
        raise YamlFault("expected KEY: value lines; see `fasthg config new small`", _line(node))
    lines: dict[Path, int] = {}
    return Document(_convert(loader, node, (), lines, ()), lines)


def parse_value(text: str) -> object:
    """Parse the value of an override such as `[1, 2]`, `1e-3`, `true` or nothing (null).

    Raises:
        YamlFault: a syntax error or a repeated key.
    """
    loader, node = _compose(text)
    return None if node is None else _convert(loader, node, (), {}, ())


def dump_values(values: dict[str, Any]) -> str:
    """YAML text that `parse_document` turns back into the same values; leaf lists in one line."""
    text: str = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=100,
        allow_unicode=True,
    )
    return text


def dump_value(value: Any, width: int = 100) -> str:
    """One value as YAML in brackets and braces, without a line break at the end; lists that are
    longer than `width` go on in further lines."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=width, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _compose(text: str) -> tuple[_Loader, yaml.Node | None]:
    try:
        loader = _Loader(text)
        return loader, loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "not YAML"
        raise YamlFault(
            f"{what}; check quotes, brackets and indentation here",
            mark.line + 1 if mark else None,
        ) from error
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise YamlFault(f"{what}; save the file as plain UTF-8 text", None) from error
    except RecursionError:
        raise YamlFault("nested too deep; check quotes and brackets", None) from None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _convert(
    loader: _Loader,
    node: yaml.Node,
    path: Path,
    lines: dict[Path, int],
    parents: tuple[yaml.Node, ...],
) -> Any:
    if node in parents:
        raise YamlFault("an alias that contains itself; write the value out", _line(node))
    parents = (*parents, node)
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node, path)
        loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            lines[(*path, key)] = _line(key_node)
            result[key] = _convert(loader, value_node, (*path, key), lines, parents)
        return result
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = _line(item)
        return [
            _convert(loader, item, (*path, index), lines, parents)
            for index, item in enumerate(node.value)
        ]
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        what = getattr(error, "problem", None) or str(error)
        raise YamlFault(f"{what}; write a plain value", _line(node)) from error


def _refuse_repeated_keys(node: yaml.MappingNode, path: Path) -> None:
    first: dict[str, int] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlFault("a key must be a single word; write KEY: value", _line(key_node))
        key = str(key_node.value)
        if key in first:
            name = ".".join([*map(str, path), key])
            raise YamlFault(
                f"{name}: repeated, first set in line {first[key]}; keep one of the two",
                _line(key_node),
            )
        first[key] = _line(key_node)
