# SPDX-License-Identifier: MIT
"""Requests to nfnetlink_queue that the netfilterqueue library cannot send (kernel.md 5)."""

import struct
from typing import Final

from nfq_guard.netlink.messages import (
    NLMSG_ERROR,
    attribute,
    error_in,
    message,
    messages,
)

TYPE_VERDICT: Final = 0x301
TYPE_CONFIG: Final = 0x302
TYPE_VERDICT_BATCH: Final = 0x303

_ATTR_VERDICT: Final = 2
_ATTR_MARK: Final = 3
_ATTR_CONFIG_COMMAND: Final = 1
_ATTR_CONFIG_PARAMETERS: Final = 2
_ATTR_CONFIG_LENGTH: Final = 3
_ATTR_CONFIG_MASK: Final = 4
_ATTR_CONFIG_FLAGS: Final = 5

_COMMAND_BIND: Final = 1
_COMMAND_UNBIND: Final = 2
_ANY_FAMILY: Final = 0
_WORD: Final = struct.Struct("!I")

CONFIG_FAIL_OPEN: Final = 1
CONFIG_GSO: Final = 4
# Sequence of the verdict for all packets up to an id, of which there may be none. Not a flag.
UNREAD: Final = 3

_COPY_PACKET: Final = 2
_COPY: Final = struct.Struct("!IB")


def config_flags(queue_num: int, flag: int, *, on: bool = True) -> bytes:
    """Set or clear one queue flag; an unknown flag fails the whole request, so one a request.

    A kernel without the flag answers with an error whose sequence is `flag`.
    """
    body = attribute(_ATTR_CONFIG_MASK, _WORD.pack(flag))
    body += attribute(_ATTR_CONFIG_FLAGS, _WORD.pack(flag if on else 0))
    return message(TYPE_CONFIG, 0, flag, _ANY_FAMILY, queue_num, body)


def config_unbind(queue_num: int) -> bytes:
    """Unbind a queue, which the kernel refuses unless the sender's socket owns it."""
    body = attribute(_ATTR_CONFIG_COMMAND, bytes((_COMMAND_UNBIND, 0, 0, 0)))
    return message(TYPE_CONFIG, 0, 0, _ANY_FAMILY, queue_num, body)


def config_queue(queue_num: int, copy_bytes: int, packets: int, *, bind: bool) -> bytes:
    """Configure a queue in one request, after which each packet is copied to its owner.

    The kernel responds only with an error, for which `error_of` gives the errno.

    Args:
        queue_num: The queue.
        copy_bytes: Bytes of each packet that are copied.
        packets: The maximum number of waiting packets.
        bind: Whether to bind it first, so that no packet meets a queue that does not copy yet.
    """
    body = attribute(_ATTR_CONFIG_COMMAND, bytes((_COMMAND_BIND, 0, 0, 0))) if bind else b""
    body += attribute(_ATTR_CONFIG_PARAMETERS, _COPY.pack(copy_bytes, _COPY_PACKET))
    body += attribute(_ATTR_CONFIG_LENGTH, _WORD.pack(packets))
    return message(TYPE_CONFIG, 0, 0, _ANY_FAMILY, queue_num, body)


def config_nothing() -> bytes:
    """A request that changes nothing; the kernel loads its module to handle it."""
    return message(TYPE_CONFIG, 0, 0, _ANY_FAMILY, 0, b"")


def verdict(kind: int, queue_num: int, verdict_number: int, mark: int | None) -> bytes:
    """A verdict message without its last word, the packet id.

    The attribute of a mark comes first, so that the packet id always ends the message and the rest
    of it can be built once (`verdicts.VerdictSender`).

    Args:
        kind: `TYPE_VERDICT` for one packet, `TYPE_VERDICT_BATCH` for all up to the id.
        queue_num: The queue.
        verdict_number: 0 drop, 1 accept.
        mark: Packet mark to set, or None.
    """
    body = b"" if mark is None else attribute(_ATTR_MARK, _WORD.pack(mark))
    body += attribute(_ATTR_VERDICT, _WORD.pack(verdict_number) + bytes(4))
    return message(kind, 0, 0, _ANY_FAMILY, queue_num, body)[:-4]


def verdict_up_to(queue_num: int, verdict_number: int, last: int) -> bytes:
    """A verdict for all waiting packets with an id up to `last`.

    If there is none, the kernel responds with ENOENT and the sequence `UNREAD`.
    """
    body = attribute(_ATTR_VERDICT, _WORD.pack(verdict_number) + _WORD.pack(last))
    return message(TYPE_VERDICT_BATCH, 0, UNREAD, _ANY_FAMILY, queue_num, body)


def error_of(answer: bytes) -> tuple[int, int] | None:
    """The errno of an error message and the sequence of its request; None for other messages."""
    for kind, sequence, body in messages(answer):
        if kind == NLMSG_ERROR:
            return error_in(body), sequence
    return None
