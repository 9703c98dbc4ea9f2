# SPDX-License-Identifier: MIT
"""Lists the fields of each event, for the reference and its test."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec


class FieldInfo(NamedTuple):
    """One field of an event.

    Attributes:
        name: As in JSON.
        description: One sentence.
        unit: `bytes`, `packets`, ..., or empty.
        ecs: The field of the Elastic Common Schema that takes the value; empty without one.
        optional: Whether the field may be absent.
        nullable: Whether it may be null.
        values: The values of an enumeration; empty for other types.
        array: Whether the value is an array.
        parts: The fields of an object; empty for other types.
        flattened: Whether the keys of the object are fields of the event themselves.
    """

    name: str
    description: str
    unit: str
    ecs: str
    optional: bool
    nullable: bool
    values: tuple[str, ...]
    array: bool
    parts: tuple["FieldInfo", ...]
    flattened: bool


def describe(struct: type[msgspec.Struct]) -> Iterator[FieldInfo]:
    """The fields of an event, or of an object in one, in order.

    In addition every event has `event`, its name, and every event except `packet_judged` has
    `timestamp` and `level`.
    """
    found = msgspec.inspect.type_info(struct)
    assert isinstance(found, msgspec.inspect.StructType)  # noqa: S101 - by the argument's type
    for field in found.fields:
        yield _field(field)


def _field(field: msgspec.inspect.Field) -> FieldInfo:
    description = ""
    keywords: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    kinds: list[msgspec.inspect.Type] = [field.type]
    values: list[str] = []
    parts: tuple[FieldInfo, ...] = ()
    nullable = False
    array = False
    while kinds:
        kind = kinds.pop(0)
        match kind:
            case msgspec.inspect.Metadata():
                schema = kind.extra_json_schema or {}
                description = description or str(schema.get("description", ""))
                keywords |= schema
                extra |= kind.extra or {}
                kinds.append(kind.type)
            case msgspec.inspect.UnionType():
                kinds += kind.types
            case msgspec.inspect.NoneType():
                nullable = field.required
            case msgspec.inspect.EnumType():
                values += [str(member.value) for member in kind.cls]
            case msgspec.inspect.LiteralType():
                values += [str(value) for value in kind.values]
            case msgspec.inspect.VarTupleType() | msgspec.inspect.ListType():
                array = True
                kinds.append(kind.item_type)
            case msgspec.inspect.StructType():
                parts = tuple(describe(kind.cls))
            case _:
                pass
    return FieldInfo(
        name=field.encode_name,
        description=description,
        unit=str(keywords.get("unit", "")),
        ecs=str(keywords.get("ecs", "")),
        optional=not field.required,
        nullable=nullable,
        values=tuple(extra.get("values", values)),
        array=array,
        parts=parts,
        flattened=bool(extra.get("flattened")),
    )
