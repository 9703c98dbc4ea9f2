# SPDX-License-Identifier: MIT
"""Examples of each event, generated from its class."""

from enum import Enum
from typing import Any, Final

import msgspec

from nfq_guard.telemetry.events import EVENTS, Event


def examples() -> list[Event]:
    """Each event twice: with mandatory fields only, and with all fields."""
    return [_struct(event, full=full) for event in EVENTS for full in (False, True)]


def _struct(kind: type[Any], *, full: bool) -> Any:  # noqa: ANN401 - an instance of `kind`
    fields = {
        field.name: _value(found.type, full=full)
        for field, found in zip(msgspec.structs.fields(kind), _type_of(kind).fields, strict=True)
        if full or field.required
    }
    return kind(**fields)


def _type_of(kind: type[Any]) -> msgspec.inspect.StructType:
    found = msgspec.inspect.type_info(kind)
    assert isinstance(found, msgspec.inspect.StructType)
    return found


def _value(kind: msgspec.inspect.Type, *, full: bool) -> object:
    if type(kind) in _PLAIN:
        return _PLAIN[type(kind)]
    match kind:
        case msgspec.inspect.Metadata():
            return _value(kind.type, full=full)
        case msgspec.inspect.UnionType():
            return _value(kind.types[0], full=full) if full else None
        case msgspec.inspect.IntType():
            return 1 if kind.ge is None else max(1, kind.ge)
        case msgspec.inspect.LiteralType():
            return kind.values[0]
        case msgspec.inspect.EnumType():
            assert issubclass(kind.cls, Enum)
            return next(iter(kind.cls))
        case msgspec.inspect.StructType():
            return _struct(kind.cls, full=full)
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            return (_value(kind.item_type, full=full),)
        case msgspec.inspect.TupleType():
            return tuple(_value(item, full=full) for item in kind.item_types)
        case _:
            raise AssertionError(kind)


_PLAIN: Final[dict[type[msgspec.inspect.Type], object]] = {
    msgspec.inspect.FloatType: 2.5,
    msgspec.inspect.BoolType: True,
    msgspec.inspect.StrType: "text",
    msgspec.inspect.DictType: {"reloads": 1},
    msgspec.inspect.NoneType: None,
}
