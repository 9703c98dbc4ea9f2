# SPDX-License-Identifier: MIT
"""Parses the packets in the kernel's log: those of conntrack and those of LOG rules.

The log may be damaged or hostile, because remote hosts determine much of its content. A line
without a complete packet is counted, and a line longer than any of the kernel's is not kept.
"""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NamedTuple, final

import msgspec

from nfq_guard.kernlog.notices import Notice, Noticed, notice_at
from nfq_guard.names import address, address_bytes
from nfq_guard.wire.packet import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG

# The kernel writes at most 1024 characters at once; a journal entry has further fields.
LINE_MAX_BYTES: Final = 1 << 14

# Prefixes of syslog, dmesg and the journal before the kernel's text.
_HEADER: Final = re.compile(
    r"(?:<\d{1,3}>(?:1 )?)?"
    # syslog in either format, also with structured data, and every short form of journalctl
    r"(?:[^=]{0,200}?\bkernel(?:\[\d{1,10}\])?(?:: ?| - - (?:-|(?:\[[^]]{1,200}\])+) )"
    # dmesg --decode, dmesg --time-format iso
    r"|kern *:\w{1,8} *: ?|\d{4}-\d\d-\d\dT[\d:]{8},\d{1,9}[+-][\d:]{4,5} "
    # ulogd, and syslog without the name of the program
    r"|\w{3} [ \d]\d [\d:]{8} \S{1,255} (?P<program>\w{1,64}\[\d{1,10}\]: ?)?"
    # journalctl -o export, verbose and json-pretty; dmesg --json
    r'|\s*(?:MESSAGE=|"(?:MESSAGE|msg)" ?: "))?'
    r"(?:message repeated (?P<times>\d{1,9}) times: \[ ?)?"
    r"(?:\[(?: *\d{1,12}\.\d{1,9}| *\+\d{1,12}\.\d{1,9}|\w{3} ?[ \d]\d [\d:]{5}"
    r"|\w{3} \w{3} [ \d]\d [\d:]{8} \d{4})(?: <[ +\d.]{1,20}>)?\] ?)?"
    # the processor or task that wrote it
    r"(?:\[ *[CT]\d{1,10}\] ?)?"
)
# sysklogd and BSD: the line before it came again.
_AGAIN: Final = re.compile(
    r"(?:<\d{1,3}>)?\w{3} [ \d]\d [\d:]{8} (?:\S{1,255} )?last message repeated (\d{1,9}) times?\s*"
)
# Prefixes of journalctl -o json-seq and json-sse before an entry.
_BEFORE_ENTRY: Final = (b"\x1e", b"data: ")
_PACKET: Final = re.compile(r"IN=(\S{0,15}) OUT=(\S{0,15}) ")
_PROTOCOL: Final = re.compile(r"[A-Za-z0-9]{1,8}")
_FLAGS: Final = {
    "FIN": FIN,
    "SYN": SYN,
    "RST": RST,
    "PSH": PSH,
    "ACK": ACK,
    "URG": URG,
    "ECE": ECE,
    "CWR": CWR,
}
# The options of IP have the same form, but precede the protocol.
_OPTIONS: Final = re.compile(r" URGP=\d{1,5} OPT \(([0-9A-F]{2,80})\)")
# Numbers that further words follow in every whole line.
_NEVER_LAST: Final = ("SPT", "DPT", "SEQ", "ACK")


@final
class LoggedPacket(NamedTuple):
    """A packet in the log.

    Attributes:
        line: Number of its line, from 1.
        text: What is before the packet: conntrack's text or the prefix of a rule.
        proto: Its protocol in lower case: `tcp`, or a number.
        src: Source address.
        sport: Source port; None without one.
        dst: Destination address.
        dport: Destination port; None without one.
        flags: TCP flags; None if the line does not have all of them.
        seq: Sequence number; None without one.
        ack: Acknowledgement number; None without one.
        options: TCP options.
        times: Number of consecutive repetitions that syslog counted.
    """

    line: int
    text: str
    proto: str
    src: str
    sport: int | None
    dst: str
    dport: int | None
    flags: int | None
    seq: int | None
    ack: int | None
    options: bytes
    times: int = 1


class _Entry(msgspec.Struct):
    """What is read of a line that is a JSON object.

    Any of the fields may be something else than a text in the objects of other programs, as `log`
    is in those of Filebeat.

    Attributes:
        journal: The text, of `journalctl -o json`; a list if it is not UTF-8.
        message: The same, of shippers such as Filebeat.
        msg: Of rsyslog.
        log: Of container runtimes.
    """

    journal: Any = msgspec.field(default="", name="MESSAGE")
    message: Any = ""
    msg: Any = ""
    log: Any = ""

    def text(self) -> bytes:
        """The first of the fields that is a text and not empty; empty if none is.

        Raises:
            ValueError: The journal's is a list of something else than octets.
            TypeError: The same.
        """
        if isinstance(self.journal, list):
            return bytes(self.journal)
        for found in (self.journal, self.message, self.msg, self.log):
            if isinstance(found, str) and found:
                return found.encode()
        return b""


@final
class LogReader:
    """Reads the lines of a log.

    Attributes:
        lines: Number of lines read.
        skipped: Number of lines that begin like a packet's line but have no complete packet, or are
            too long.
        notices: What lines without a packet say of packets or of lines.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.skipped = 0
        self.notices: dict[Notice, Noticed] = {}
        self._decoder = msgspec.json.Decoder(_Entry)

    def read(self, stream: BinaryIO) -> Iterator[LoggedPacket]:
        """The packets of a log in any form: dmesg, syslog, ulogd, `journalctl`, also `-o json`."""
        last: LoggedPacket | Notice | None = None
        while line := stream.readline(LINE_MAX_BYTES):
            self.lines += 1
            if len(line) == LINE_MAX_BYTES and not line.endswith(b"\n"):
                self.skipped += 1
                last = None
                while (rest := stream.readline(LINE_MAX_BYTES)) and not rest.endswith(b"\n"):
                    pass
                continue
            text = self._text(line)
            again = None if last is None else _AGAIN.fullmatch(text)
            if again is not None:
                if isinstance(last, LoggedPacket):
                    yield last._replace(line=self.lines, times=int(again[1]))
                elif last is not None:
                    noticed = self.notices[last]
                    noticed.count += noticed.last_count * int(again[1])
                    noticed.last_line = self.lines
                continue
            found = _PACKET.search(text)
            if found is None:
                last = self._note(text)
                continue
            last = _packet(self.lines, text, found)
            if last is None:
                self.skipped += 1
            else:
                yield last

    def _note(self, text: str) -> Notice | None:
        """Count what a line without a packet says; None if it says nothing of packets or lines."""
        header = _HEADER.match(text)
        said = None if header is None else notice_at(text, header.end())
        if header is None or said is None or header["program"]:
            return None
        notice, found = said
        noticed = self.notices.setdefault(notice, Noticed(found[0], self.lines))
        noticed.last_count = int(found.groupdict().get("count") or 1)
        noticed.count += int(header["times"] or 1) * noticed.last_count
        noticed.last_line = self.lines
        return notice

    def _text(self, line: bytes) -> str:
        for before in _BEFORE_ENTRY:
            if line.startswith(before + b"{"):
                line = line.removeprefix(before)
        if line.startswith(b"{"):
            try:
                line = self._decoder.decode(line).text()
            except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
                return ""  # not an entry of the journal
        return line.decode("utf-8", "replace").rstrip("\r\n")


def _packet(line: int, text: str, found: re.Match[str]) -> LoggedPacket | None:
    # The packet that an ICMP error quotes follows in brackets.
    body, quoted, _ = text[found.end() :].partition("[")
    words = body.split()
    if not quoted and words and words[-1].partition("=")[0] in _NEVER_LAST and body[-1] != " ":
        words.pop()  # the line was cut off, perhaps within the number
    fields: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        fields.setdefault(name, value)
    proto = fields.get("PROTO", "")
    try:
        src, dst = (address(address_bytes(fields.get(name, ""))) for name in ("SRC", "DST"))
        sport, dport = (_number(fields, name, 0xFFFF) for name in ("SPT", "DPT"))
        seq, ack = (_number(fields, name, 0xFFFFFFFF) for name in ("SEQ", "ACK"))
    except ValueError:
        return None
    if src is None or dst is None or not _PROTOCOL.fullmatch(proto):
        return None
    tcp = proto == "TCP"
    # URGP follows the flags.
    whole = tcp and "URGP" in fields
    flags = sum(bit for name, bit in _FLAGS.items() if name in words) if whole else None
    options = _OPTIONS.search(body)
    header = _HEADER.match(text)
    start = 0
    times = 1
    if header is not None and header.end() <= found.start():
        start = header.end()
        times = int(header["times"] or 1)
    return LoggedPacket(
        line,
        text[start : found.start()],
        proto.lower(),
        src,
        sport,
        dst,
        dport,
        flags,
        seq if tcp else None,
        ack if tcp and flags is not None and flags & ACK else None,
        bytes.fromhex(options[1]) if options is not None and len(options[1]) % 2 == 0 else b"",
        times,
    )


def _number(fields: dict[str, str], name: str, largest: int) -> int | None:
    text = fields.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > largest:
        raise ValueError(name)
    return int(text)
