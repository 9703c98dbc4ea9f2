# SPDX-License-Identifier: MIT
"""The shapes of a daemon's responses, as far as the commands read them.

A daemon of another version may respond with something else, and a compromised one with anything.
"""

from typing import Annotated, Any, Final, NotRequired, TypedDict

import msgspec
from msgspec import Meta

from nfq_guard.service.control.commands import ModeRecord
from nfq_guard.service.status import another_version
from nfq_guard.service.worker.history import EndsRecord


class _Reload(TypedDict):
    policy: str
    rules: int
    mode: NotRequired[str]
    restart_for: NotRequired[list[str]]
    rules_problem: NotRequired[str]


class _Breach(TypedDict):
    distance: int


class _Event(TypedDict):
    timestamp: str
    reason: str
    action: str
    verdict: str
    would: str
    rule: str
    evidence: str
    nat: str
    proto: str
    src: str | None
    sport: int | None
    dst: str | None
    dport: int | None
    tcp_flags: str | None
    seq: int | None
    ack: int | None
    direction: str | None
    state: str | None
    breach: _Breach | None


class _Flow(TypedDict):
    flow: EndsRecord
    first: str
    last: str
    packets: int
    reasons: Annotated[dict[str, int], Meta(min_length=1)]
    resets: int
    events: Annotated[list[_Event], Meta(min_length=1)]


class _Packet(TypedDict):
    time_ns: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    interface: Annotated[str, Meta(max_length=256)]
    wire_len: Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
    octets: bytes
    # An option of pcapng has two bytes for its length, a character has up to four in UTF-8.
    comment: Annotated[str, Meta(max_length=0xFFFF // 4)]


MODE: Final = ModeRecord
RELOAD: Final = _Reload
FLOWS: Final = list[_Flow]
PACKETS: Final = list[_Packet]


def checked(message: Any, shape: Any) -> Any:  # noqa: ANN401 - any JSON, of any of these shapes
    """The message, unchanged.

    Raises:
        NfqGuardError: It has another shape.
    """
    try:
        msgspec.convert(message, shape)
    except msgspec.ValidationError as error:
        raise another_version(error) from None
    return message
