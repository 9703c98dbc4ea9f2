# SPDX-License-Identifier: MIT
"""The few nfnetlink_queue messages that netfilterqueue cannot send or read (kernel.md 5).

Everything here is octets in, octets out; the socket is the reader's.
"""

import struct
from typing import Final

from nfq_guard.netlink import ERROR, HEADER, NLM_F_ACK, NLMSG_ERROR, attribute
from nfq_guard.netlink import message as request

TYPE_VERDICT: Final = 0x301
TYPE_CONFIG: Final = 0x302
TYPE_VERDICT_BATCH: Final = 0x303

_ATTR_VERDICT: Final = 2
_ATTR_MARK: Final = 3
_ATTR_CONFIG_COMMAND: Final = 1
_ATTR_CONFIG_MASK: Final = 4
_ATTR_CONFIG_FLAGS: Final = 5

_COMMAND_BIND: Final = 1
_ANY_FAMILY: Final = 0
_WORD: Final = struct.Struct("!I")

CONFIG_FAIL_OPEN: Final = 1
CONFIG_GSO: Final = 4

SKB_CHECKSUM_UNFINISHED: Final = 1
SKB_GSO: Final = 2
SKB_CHECKSUM_UNVERIFIED: Final = 4


def config_flags(queue_num: int, flag: int, *, on: bool = True) -> bytes:
    """Set or clear one queue flag; one a message, for an unknown one spoils the whole request.

    A kernel without the flag answers with an error whose sequence is `flag`.
    """
    body = attribute(_ATTR_CONFIG_MASK, _WORD.pack(flag))
    body += attribute(_ATTR_CONFIG_FLAGS, _WORD.pack(flag if on else 0))
    return request(TYPE_CONFIG, 0, flag, _ANY_FAMILY, queue_num, body)


def config_bind(queue_num: int) -> bytes:
    """Ask for a queue, with an answer either way: `error_of` gives 0 when it is ours."""
    body = attribute(_ATTR_CONFIG_COMMAND, bytes((_COMMAND_BIND, 0, 0, 0)))
    return request(TYPE_CONFIG, NLM_F_ACK, 0, _ANY_FAMILY, queue_num, body)


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
    body = b"" if mark is None else attribute(_ATTR_MARK, _WORD.pack(mark))
    body += attribute(_ATTR_VERDICT, _WORD.pack(verdict_number) + bytes(4))
    return request(kind, 0, 0, _ANY_FAMILY, queue_num, body)[:-4]


def error_of(message: bytes) -> tuple[int, int] | None:
    """The errno and the sequence of the request that an error message is about, else None."""
    if len(message) < HEADER.size + ERROR.size:
        return None
    _, kind, _, sequence, _ = HEADER.unpack_from(message)
    if kind != NLMSG_ERROR:
        return None
    (code,) = ERROR.unpack_from(message, HEADER.size)
    return -code, sequence
