# SPDX-License-Identifier: MIT
"""`nfq-guard dump`: the flows of the running daemon or of a recording, or the last packets."""

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from nfq_guard.capture.anonymise import Anonymiser
from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import RAW
from nfq_guard.capture.writer import PcapngWriter
from nfq_guard.cli.answers import FLOWS, PACKETS, checked
from nfq_guard.cli.daemon import add_socket, connected
from nfq_guard.cli.options import add_format, output_file, whole_number
from nfq_guard.cli.recording import is_capture, opened
from nfq_guard.cli.terminal import paint, printable, write_json, write_line
from nfq_guard.errors import EXIT_OK, UsageError
from nfq_guard.finding import Reason
from nfq_guard.glossary import CAUSES, REASONS
from nfq_guard.names import counted, endpoint, visible
from nfq_guard.outfile import output
from nfq_guard.report.hints import hints_of
from nfq_guard.service.worker.frames import PacketRecord
from nfq_guard.service.worker.history import History
from nfq_guard.telemetry.palette import Style
from nfq_guard.telemetry.reader import EventReader, event_of
from nfq_guard.whatif.causes import cause_in_event
from nfq_guard.whatif.events import recorded
from nfq_guard.wire.packet import flow_key

Fields = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "address", metavar="ADDRESS", nargs="?", help="only flows with this end, also ADDRESS:PORT"
    )
    parser.add_argument(
        "--events",
        metavar="FILE",
        help="the flows of a file of events, plain or compressed, or of the journal (journalctl -o "
        "json), instead of the daemon's; - reads standard input",
    )
    parser.add_argument("--flows", type=whole_number(1), metavar="N", help="the last N flows")
    parser.add_argument(
        "--pcap",
        type=output_file,
        metavar="FILE",
        help="write the last INVALID packets to FILE, pcapng with comments",
    )
    parser.add_argument(
        "--packets",
        type=whole_number(1),
        metavar="N",
        help="with --pcap: the last N packets",
    )
    parser.add_argument(
        "--hash-addresses",
        action="store_true",
        help="with --pcap: replace addresses with hashes under a key that is discarded",
    )
    add_socket(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the flows, the most recent first; as JSON Lines, one object per flow."""
    asked: dict[str, object] = {}
    address = ""
    port: int | None = None
    if args.address is not None:
        address, port = _end(args.address)
        asked["address"] = address
    if args.pcap is not None:
        return _save(args, asked, port)
    if args.packets is not None or args.hash_addresses:
        raise UsageError("--packets and --hash-addresses need --pcap FILE")
    if args.events is not None:
        flows = _of_recording(args, address, port)
    else:
        # The daemon knows no ports: its limit would leave out flows that have this one.
        if args.flows is not None and port is None:
            asked["flows"] = args.flows
        with connected(args) as client:
            flows = checked(client.request("dump", **asked), FLOWS)
    if port is not None:
        flows = [found for found in flows if (address, port) in _ends(found["flow"])][: args.flows]
    for flow in flows:
        if args.format == "json":
            write_json(flow)
        else:
            _show(flow)
    if not flows and args.format == "text":
        none = "no event" if args.events is not None else "no flow was logged yet"
        write_line(none if args.address is None else "no flow with that end")
    return EXIT_OK


def _of_recording(args: argparse.Namespace, address: str, port: int | None) -> list[Fields]:
    """The flows of a recording, the most recent first, each with its last events.

    Raises:
        UsageError: It cannot be read, or has no events.
    """
    history = History() if args.flows is None else History(args.flows)
    reader = EventReader()
    found = 0
    with opened(args.events) as stream:
        if is_capture(stream):
            raise UsageError(f"{args.events}: a capture: use replay or whatif")
        for read in reader.read(stream):
            found += 1
            event = read.event
            ends = {(event.src, event.sport), (event.dst, event.dport)}
            hosts = {event.src, event.dst}
            if (address, port) in ends or (port is None and address in {"", *hosts}):
                key = flow_key(next(recorded(read)).packet)
                history.add(key, event, read.when.timestamp())
    if not found and reader.lines:
        why = "".join(f"; {text}" for text in reader.unrecorded.texts())
        raise UsageError(f"{args.events}: expected packet_judged events, found none{why}")
    for gap in (reader.skipped_text(), *reader.unrecorded.texts()):
        if gap:
            sys.stderr.write(f"nfq-guard: {printable(args.events)}: {gap}\n")
    flows = history.flows(None, sys.maxsize)
    return [msgspec.json.decode(orjson.dumps(flow), type=Fields) for flow in flows]


def _save(args: argparse.Namespace, asked: dict[str, object], port: int | None) -> int:
    if args.events is not None:
        raise UsageError("--pcap: events have no packets, only the daemon has")
    if args.flows is not None or args.format == "json":
        raise UsageError("--pcap writes packets: not with --flows or --format json")
    if port is not None:
        raise UsageError("--pcap takes an ADDRESS without a port")
    if args.packets is not None:
        asked["packets"] = args.packets
    with connected(args) as client:
        found = checked(client.request("packets", **asked), PACKETS)
    kept = [msgspec.convert(one, PacketRecord) for one in reversed(found)]
    anonymiser = Anonymiser(os.urandom(32)) if args.hash_addresses else None
    with output(args.pcap, f"--pcap: {args.pcap}") as file:
        writer = PcapngWriter(file)
        for number, one in enumerate(kept, 1):
            octets = one.octets if anonymiser is None else anonymiser.packet(one.octets)
            frame = Frame(number, one.time_ns, RAW, one.wire_len, octets, 0)
            writer.write(frame, one.comment, one.interface)
    write_line(f"wrote {counted(len(kept), 'packet')} to {args.pcap}")
    return EXIT_OK


def _end(text: str) -> tuple[str, int | None]:
    """Parse `ADDRESS` or `ADDRESS:PORT`; the port is None without one.

    Raises:
        UsageError: It is neither.
    """
    host, port = text, ""
    with_port = re.fullmatch(r"(?:\[(?P<six>[^\]]+)\]|(?P<four>[^:]+)):(?P<port>\d{1,5})", text)
    if with_port is not None:
        host, port = with_port["six"] or with_port["four"], with_port["port"]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(f"expected ADDRESS or ADDRESS:PORT, found {text!r}") from None
    return str(address), int(port) if port else None


def _ends(flow: Fields) -> set[tuple[str, int]]:
    return {(flow["a"], flow["a_port"]), (flow["b"], flow["b_port"])}


def _show(found: Fields) -> None:
    flow = found["flow"]
    # Without an address or a port the fields of a flow are empty or 0.
    one = endpoint(flow["a"] or None, flow["a_port"] or None)
    other = endpoint(flow["b"] or None, flow["b_port"] or None)
    packets = counted(found["packets"], "packet")
    write_line(
        paint(f"{flow['proto']} {one} - {other}: {packets}, last {found['last']}", Style.BOLD)
    )
    cause = cause_text(found["events"][-1])
    if cause:
        write_line(f"  {cause}")
    for hint in hint_texts(found["events"]):
        write_line(f"  {hint}")
    for event in found["events"]:
        write_line(f"  {event_line(event)}")


def cause_text(event: Fields) -> str:
    """The meaning of an event's reason, with the cause as far as the event shows it."""
    reason = event["reason"]
    if reason not in list(Reason):
        return ""  # from a daemon of another version
    meant = f"{reason}: {REASONS[Reason(reason)].phrase}"
    if event_of(event) is None:
        return meant
    cause = cause_in_event(
        Reason(reason),
        event["tcp_flags"],
        event["direction"],
        event["state"],
        event["src"],
        event["dst"],
    )
    return meant if cause is None else f"{meant}; {CAUSES[cause].phrase}"


def hint_texts(events: Sequence[Fields]) -> list[str]:
    """Possible causes of a flow's events, with their evidence."""
    read = [one for one in map(event_of, events) if one is not None]
    return [f"hint: {hint.text}" for hint in hints_of(read)]


def event_line(event: Fields) -> str:
    """One event of a flow, on one line."""
    flags = f" {event['tcp_flags']}" if event["tcp_flags"] else ""
    seq = f" seq {event['seq']}" if event["seq"] is not None else ""
    ack = f" ack {event['ack']}" if event["ack"] is not None else ""
    count = f" x{event['count']}" if "count" in event else ""
    would = "would " if event["would"] != event["verdict"] else ""
    return visible(
        f"{event['timestamp'][11:23]} {would}{event['action']} {event['reason']}{distance(event)}"
        f"{flags}{seq}{ack} from {endpoint(event['src'], event['sport'])}"
        f" {event['state'] or 'no state'} nat={event['nat']} rule={event['rule']}{count}"
    )


def distance(event: Fields) -> str:
    """The distance beyond the bound, if one was broken."""
    breach = event["breach"]
    return "" if breach is None else f" by {breach['distance']}"
