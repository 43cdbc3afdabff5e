"""protobuf's own reading of `tf.train.Example`, and ours for comparison."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from samples import fields

from fasthg.data.records import protobuf

# What is refused by us and not by protobuf, by our words for it.
DELIBERATE = re.compile(r"wire type [34]|second value of a feature|more than \d+ (features|values)")
KINDS = ("BYTES", "FLOAT", "INT64")

Values = tuple[str, list[Any]]


def example_class() -> Any:
    """`tf.train.Example`, of a schema written out here. ImportError without protobuf."""
    from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

    def field(name: str, of: str, *, repeated: bool = False, **more: Any) -> dict[str, Any]:
        kind = {"type": f"TYPE_{of}"} if of.isupper() else {"type_name": f".tensorflow.{of}"}
        label = "LABEL_REPEATED" if repeated else "LABEL_OPTIONAL"
        return {"name": name, "number": 1, "label": label, **kind, **more}

    lists = [
        {"name": f"{kind.title()}List", "field": [field("value", kind, repeated=True)]}
        for kind in KINDS
    ]
    alternatives = [
        field(f"{kind.lower()}_list", f"{kind.title()}List", oneof_index=0) | {"number": number}
        for number, kind in enumerate(KINDS, 1)
    ]
    entry = {
        "name": "FeatureEntry",
        "field": [field("key", "STRING"), field("value", "Feature") | {"number": 2}],
        "options": {"map_entry": True},
    }
    features = field("feature", "Features.FeatureEntry", repeated=True)
    messages = [
        *lists,
        {"name": "Feature", "field": alternatives, "oneof_decl": [{"name": "kind"}]},
        {"name": "Features", "field": [features], "nested_type": [entry]},
        {"name": "Example", "field": [field("features", "Features")]},
    ]
    file = {"name": "e.proto", "package": "tensorflow", "syntax": "proto3"}
    pool = descriptor_pool.DescriptorPool()
    pool.Add(
        json_format.ParseDict(
            file | {"message_type": messages}, descriptor_pb2.FileDescriptorProto()
        )
    )
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def theirs(message: Any) -> dict[bytes, Values]:
    """Kind and values of every feature of a parsed Example."""
    found: dict[bytes, Values] = {}
    for key, feature in message.features.feature.items():
        kind = feature.WhichOneof("kind") or ""
        values = list(getattr(feature, kind).value) if kind else []
        found[key.encode()] = (kind.removesuffix("_list").upper(), values)
    return found


def ours(payload: bytes) -> dict[bytes, Values]:
    """The same by our reader. ValueError where any feature cannot be read."""
    found: dict[bytes, Values] = {}
    for key, span in protobuf.features(payload).items():
        read: dict[str, list[Any]] = {}
        refusals: list[ValueError] = []
        for kind, reader in zip(KINDS, (_texts, _floats, protobuf.ints), strict=True):
            try:
                read[kind] = reader(payload, span)
            except ValueError as error:
                refusals.append(error)
        if not read:
            raise next(error for error in refusals if not str(error).startswith("holds"))
        # A feature without any list is an empty one of every kind.
        found[key] = ("", []) if len(read) == len(KINDS) else next(iter(read.items()))
    return found


def _texts(payload: bytes, span: protobuf.Span) -> list[bytes]:
    return [payload[start:end] for start, end in protobuf.bytes_spans(payload, span)]


def _floats(payload: bytes, span: protobuf.Span) -> list[float]:
    return np.frombuffer(protobuf.float_bytes(payload, span), "<f4").tolist()


def comparison() -> Callable[[bytes], None]:
    """A function that raises AssertionError where the two read a payload differently."""
    from google.protobuf.message import DecodeError
    from google.protobuf.unknown_fields import UnknownFieldSet

    message = example_class()

    def compare(payload: bytes) -> None:
        refusal, mine = "", {}
        try:
            mine = ours(payload)
        except ValueError as error:
            refusal = str(error)
        if DELIBERATE.search(refusal):
            return
        try:
            parsed = message.FromString(payload)
        except DecodeError as error:
            assert refusal or "UTF-8" in str(error) or _replaces(payload), error
            return
        assert not refusal, refusal
        # An entry with an unknown field is itself unknown to protobuf's Python, though not to its
        # C++, which TensorFlow uses.
        if any(field.field_number == 1 for field in UnknownFieldSet(parsed.features)):
            return
        other = theirs(parsed)
        for key in mine.keys() | other.keys():
            # As text, in which NaN is NaN and -0.0 is not 0.0.
            assert repr(mine.get(key)) == repr(other.get(key)), (key, mine.get(key), other.get(key))

    return compare


def _replaces(payload: bytes) -> bool:
    """Whether a key comes twice or a feature has lists of two kinds: we skip all but the last."""
    keys = []
    for _, _, features in fields(payload):
        for _, _, entry in fields(features):
            keys += [value for tag, _, value in fields(entry) if tag == b"\x0a"] or [b""]
            for _, _, feature in fields(entry):
                if len({tag for tag, _, _ in fields(feature)}) > 1:
                    return True
    return len(set(keys)) < len(keys)
