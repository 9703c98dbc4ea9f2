# SPDX-License-Identifier: MIT
"""The structs of a BPF object file, from its type information (BTF)."""

import struct
from dataclasses import dataclass

_ELF_SECTION_TABLE = struct.Struct("<40xQ10xHHH")
_ELF_SECTION = struct.Struct("<I20xQQ24x")
_BTF_HEADER = struct.Struct("<HBBIIIII")
_BTF_TYPE = struct.Struct("<III")
_BTF_MEMBER = struct.Struct("<III")
_BTF_MAGIC = 0xEB9F
_STRUCT = 4
# Bytes after the type record: fixed ones, and for each of its `vlen` entries; none for other kinds.
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_ENTRY = {_STRUCT: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


@dataclass(frozen=True)
class Layout:
    """Size of a struct, and offsets of its members, in bytes."""

    size: int
    offsets: dict[str, int]


def structs(image: bytes) -> dict[str, Layout]:
    """The named structs of a little-endian object, by name."""
    btf = _section(image, b".BTF")
    magic, _, _, header_len, type_off, type_len, str_off, _ = _BTF_HEADER.unpack_from(btf)
    assert magic == _BTF_MAGIC
    strings = header_len + str_off
    at = header_len + type_off
    end = at + type_len
    found: dict[str, Layout] = {}
    while at < end:
        name_off, info, size = _BTF_TYPE.unpack_from(btf, at)
        at += _BTF_TYPE.size
        kind, count = info >> 24 & 31, info & 0xFFFF
        if kind == _STRUCT and name_off:
            offsets: dict[str, int] = {}
            for entry in range(count):
                member, _, bits = _BTF_MEMBER.unpack_from(btf, at + entry * _BTF_MEMBER.size)
                offsets[_text(btf, strings + member)] = bits // 8
            found[_text(btf, strings + name_off)] = Layout(size, offsets)
        at += _FIXED.get(kind, 0) + _PER_ENTRY.get(kind, 0) * count
    return found


def _section(image: bytes, name: bytes) -> bytes:
    table, entry_size, count, names = _ELF_SECTION_TABLE.unpack_from(image)
    sections = [_ELF_SECTION.unpack_from(image, table + entry_size * one) for one in range(count)]
    names_at = sections[names][1]
    for name_off, offset, size in sections:
        if image[names_at + name_off :].startswith(name + b"\0"):
            return image[offset : offset + size]
    raise AssertionError(f"no section {name!r}")


def _text(octets: bytes, at: int) -> str:
    return octets[at : octets.index(b"\0", at)].decode("ascii")
