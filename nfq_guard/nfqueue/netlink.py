# SPDX-License-Identifier: MIT
"""The few nfnetlink_queue messages that netfilterqueue cannot send or read (kernel.md 5).

Everything here is octets in, octets out; the socket is the reader's.
"""

import struct
from typing import Final

# struct nlmsghdr, in host order: length, type, flags, sequence, port id.
_HEADER: Final = struct.Struct("=IHHII")
# struct nfgenmsg: family, version, queue number in network order.
_GENERIC: Final = struct.Struct("!BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_WORD: Final = struct.Struct("!I")

TYPE_VERDICT: Final = 0x301
TYPE_CONFIG: Final = 0x302
TYPE_VERDICT_BATCH: Final = 0x303
_TYPE_ERROR: Final = 2
_FLAG_REQUEST: Final = 1
_FLAG_ACK: Final = 4

_ATTR_VERDICT: Final = 2
_ATTR_MARK: Final = 3
_ATTR_CONFIG_COMMAND: Final = 1
_ATTR_CONFIG_MASK: Final = 4
_ATTR_CONFIG_FLAGS: Final = 5

_COMMAND_BIND: Final = 1

CONFIG_FAIL_OPEN: Final = 1
CONFIG_GSO: Final = 4

SKB_CHECKSUM_UNFINISHED: Final = 1
SKB_GSO: Final = 2
SKB_CHECKSUM_UNVERIFIED: Final = 4

# A message's attributes begin here.
_ATTRIBUTES: Final = _HEADER.size + _GENERIC.size


def _message(kind: int, queue_num: int, attributes: bytes, *, sequence: int, flags: int) -> bytes:
    length = _ATTRIBUTES + len(attributes)
    return (
        _HEADER.pack(length, kind, _FLAG_REQUEST | flags, sequence, 0)
        + _GENERIC.pack(0, 0, queue_num)
        + attributes
    )


def _word(attribute: int, value: int) -> bytes:
    return _ATTRIBUTE.pack(8, attribute) + _WORD.pack(value)


def config_flags(queue_num: int, flag: int, *, on: bool = True) -> bytes:
    """Set or clear one queue flag; one a message, for an unknown one spoils the whole request.

    A kernel without the flag answers with an error whose sequence is `flag`.
    """
    attributes = _word(_ATTR_CONFIG_MASK, flag) + _word(_ATTR_CONFIG_FLAGS, flag if on else 0)
    return _message(TYPE_CONFIG, queue_num, attributes, sequence=flag, flags=0)


def config_bind(queue_num: int) -> bytes:
    """Ask for a queue, with an answer either way: `error_of` gives 0 when it is ours."""
    attributes = _ATTRIBUTE.pack(8, _ATTR_CONFIG_COMMAND) + bytes((_COMMAND_BIND, 0, 0, 0))
    return _message(TYPE_CONFIG, queue_num, attributes, sequence=0, flags=_FLAG_ACK)


def verdict(kind: int, queue_num: int, verdict_number: int, mark: int | None) -> bytes:
    """A verdict message without its last word, or last but one: the packet id.

    With a mark the attribute of the mark comes first, so that the packet id always ends the
    message and the rest of it can be made once (`verdicts.VerdictSender`).

    Args:
        kind: `TYPE_VERDICT` for one packet, `TYPE_VERDICT_BATCH` for all up to the id.
        queue_num: The queue.
        verdict_number: 0 drop, 1 accept.
        mark: Packet mark to set, or None.
    """
    attributes = b"" if mark is None else _word(_ATTR_MARK, mark)
    attributes += _ATTRIBUTE.pack(12, _ATTR_VERDICT) + _WORD.pack(verdict_number) + bytes(4)
    return _message(kind, queue_num, attributes, sequence=0, flags=0)[:-4]


def error_of(message: bytes) -> tuple[int, int] | None:
    """The errno and the sequence of the request that an error message is about, else None."""
    if len(message) < 20 or _HEADER.unpack_from(message)[1] != _TYPE_ERROR:
        return None
    sequence: int = _HEADER.unpack_from(message)[3]
    code: int = struct.unpack_from("=i", message, _HEADER.size)[0]
    return -code, sequence
