# SPDX-License-Identifier: MIT
"""An event as a JSON object, without the library that writes the log."""

from typing import Final

import msgspec

from nfq_guard.names import visible_json
from nfq_guard.telemetry.events import Event, PacketJudged, all_fields

_encoder: Final = msgspec.json.Encoder()


def json_octets(event: Event, at: str | None = None) -> bytes:
    """One event as JSON; `at` as for `all_fields`."""
    whole = event if isinstance(event, PacketJudged) else all_fields(event, at)
    return visible_json(_encoder.encode(whole))
