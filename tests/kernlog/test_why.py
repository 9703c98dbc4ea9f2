# SPDX-License-Identifier: MIT
"""`nfq-guard why`: the kernel's log, in every form in which people have it."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.cli import main
from nfq_guard.finding import Ignored, Reason
from nfq_guard.glossary import CONSEQUENCES
from nfq_guard.kernlog.groups import MAX_CASES, Groups, LoggedRecord, notice_records
from nfq_guard.kernlog.lines import LINE_MAX_BYTES, LoggedPacket, LogReader
from nfq_guard.wire.packet import ACK, RST

_IP = "MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 SRC=10.8.0.1 DST=10.8.0.2 LEN=52 TOS=0x00 "
_REST = "PREC=0x00 TTL=64 ID=7 DF PROTO=TCP SPT=40000 DPT=80 "


def tcp(
    text: str, flags: str = "ACK ", numbers: str = "SEQ=3000 ACK=5000 ", options: str = ""
) -> str:
    """A packet as the kernel writes it."""
    return f"{text}IN=eth0 OUT= {_IP}{_REST}{numbers}WINDOW=512 RES=0x00 {flags}URGP=0 {options}\n"


def read(text: str) -> tuple[LogReader, list[LoggedPacket]]:
    reader = LogReader()
    return reader, list(reader.read(io.BytesIO(text.encode())))


def records(*lines: str, **bounds: int) -> list[LoggedRecord]:
    groups = Groups(**bounds)
    for packet in read("".join(lines))[1]:
        groups.add(packet)
    return groups.records()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[   12.345678] ",
        "[Sat Nov 28 07:00:00 2026] ",
        "kern  :warn  : [   12.345678] ",
        "Nov 28 07:00:00 router kernel: ",
        "Nov 28 07:00:00 router kernel: [   12.345678] ",
        "2026-11-28T07:00:00.123456+00:00 router kernel: [12345.678901] ",
        "<4>[   12.345678] ",
        "<4>Nov 28 07:00:00 router kernel: ",
        "<4>1 2026-11-28T07:00:00.123456+00:00 router kernel - - - [   12.345678] ",
        '<4>1 2026-11-28T07:00:00+00:00 router kernel - - [meta sequenceId="7"] [   12.345678] ',
        '1 2026-11-28T07:00:00Z router kernel - - [timeQuality tzKnown="1"][meta sequenceId="7"] ',
        "Sat Nov 28 07:00:00 2026 kern.warn kernel: [   12.345678] ",
        "Sat 2026-11-28 07:00:00 UTC router kernel[0]: ",
        "[   12.345678] router kernel: ",
        "[   12.345678][    C1] ",
        "Nov 28 07:00:00 router kernel: [   12.345678][  T123] ",
        "[   12.345678 <    0.000012>] ",
        "[Nov28 07:00] ",
        "[  +0.000123] ",
        "2026-11-28T07:00:00,123456+00:00 ",
        "Nov  8 07:00:00 router ulogd[812]: ",
        "Nov 28 07:00:00 router ",
        "MESSAGE=",
        '\t"MESSAGE" : "',
        '         "msg": "',
        "2026-11-28T07:00:00+0000 router kernel: ",
        "1795849200.123456 router kernel: ",
        "Nov 28 07:00:00 router.example.net kernel: ",
    ],
)
@pytest.mark.parametrize("text", ["nf_ct_proto_6: invalid new ", "[UFW BLOCK] ", "INVALID: "])
def test_what_is_before_the_text_is_not_of_the_text(header: str, text: str) -> None:
    (packet,) = read(header + tcp(text))[1]
    assert packet == LoggedPacket(
        1, text, "tcp", "10.8.0.1", 40000, "10.8.0.2", 80, ACK, 3000, 5000, b""
    )


def test_entries_of_the_journal() -> None:
    line = tcp("nf_ct_proto_6: invalid rst ", "RST ").rstrip("\n")
    entries = [
        {"MESSAGE": line, "_TRANSPORT": "kernel"},
        {"MESSAGE": [*(line.encode() + b"\xff")]},
        {"MESSAGE": [300]},
        {"MESSAGE": None},
        {"PRIORITY": "4"},
    ]
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    deep = '{"a":' + "[" * 10_000 + "\n"
    reader, packets = read(text + "{\n" + deep)
    assert [packet.flags for packet in packets] == [RST, RST]
    assert (reader.lines, reader.skipped) == (7, 0)


@pytest.mark.parametrize("before", ["\x1e", "data: "])
def test_entries_of_the_journal_as_a_sequence(before: str) -> None:
    entry = {"MESSAGE": tcp("nf_ct_proto_6: invalid new ")}
    (packet,) = read(f"{before}{json.dumps(entry)}\n")[1]
    assert packet.text == "nf_ct_proto_6: invalid new "


@pytest.mark.parametrize("name", ["message", "msg", "log"])
def test_lines_of_other_shippers(name: str) -> None:
    line = "Nov 28 07:00:00 router kernel: " + tcp("[UFW BLOCK] ")
    (packet,) = read(json.dumps({"host": "router", name: line}) + "\n")[1]
    assert packet.text == "[UFW BLOCK] "


def test_objects_whose_other_fields_are_no_texts() -> None:
    """Filebeat's own `log` is an object: the place of the line in its file."""
    line = "Nov 28 07:00:00 router kernel: " + tcp("[UFW BLOCK] ")
    place = {"offset": 123, "file": {"path": "/var/log/kern.log"}}
    entries = [
        {"log": place, "message": line},
        {"MESSAGE": line, "message": None, "msg": 7},
        {"log": place, "message": ["a", "b"]},
        {"MESSAGE": ["a"], "message": line},
    ]
    reader, packets = read("".join(json.dumps(entry) + "\n" for entry in entries))
    assert [(packet.line, packet.text) for packet in packets] == [
        (1, "[UFW BLOCK] "),
        (2, "[UFW BLOCK] "),
    ]
    assert reader.skipped == 0


NOTICED = {
    "conntrack table full": (
        "nf_conntrack: table full, dropping packet",
        "nf_conntrack: nf_conntrack: table full, dropping packet",
        "nf_conntrack: nf_conntrack: table full in netns 4026531840, dropping packet",
        "ip_conntrack: table full, dropping packet.",
    ),
    "expectation table full": ("nf_conntrack: expectation table full",),
    "queue full": (
        "nf_queue: full at 1024 entries, dropping packets(s)",
        "nfnetlink_queue: nf_queue: full at 10 entries, dropping packets(s)",
    ),
    "lines left out by the kernel": (
        "net_ratelimit: 1 callbacks suppressed",
        "__nf_conntrack_alloc: 1 callbacks suppressed",
    ),
    "lines lost by the log": (
        "** 1 printk messages dropped **",
        "/dev/kmsg buffer overrun, some messages lost.",
    ),
}
HEADERS = ["", "[   12.345678] ", "Nov 28 07:00:00 router kernel: [   12.345678] ", "<4>"]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("title", NOTICED)
def test_what_the_kernel_says_of_packets_without_a_line(title: str, header: str) -> None:
    texts = NOTICED[title]
    reader, packets = read("".join(f"{header}{text}\n" for text in texts))
    assert packets == []
    ((notice, noticed),) = reader.notices.items()
    assert (notice.title, noticed.count, noticed.last_line) == (title, len(texts), len(texts))
    (record,) = notice_records(reader.notices)
    assert record.keys() == LoggedRecord.__required_keys__
    assert (record["source"], record["reason"]) == ("kernel", None)
    assert record["verdict"] == ("dropped" if notice.dropped else "not said")


def test_how_many_the_kernel_says() -> None:
    full = "nf_conntrack: table full, dropping packet"
    reader, _ = read(
        "Nov 28 07:00:00 router kernel: net_ratelimit: 39 callbacks suppressed\n"
        "Nov 28 07:00:05 router kernel: net_ratelimit: 2 callbacks suppressed\n"
        f"Nov 28 07:00:06 router kernel: message repeated 4 times: [ {full}]\n"
        "Nov 28 07:00:06 router systemd-journald[300]: Missed 3 kernel messages\n"
        + json.dumps({"MESSAGE": full, "_TRANSPORT": "kernel"})
        + "\n"
    )
    counts = {notice.title: noticed.count for notice, noticed in reader.notices.items()}
    assert counts == {
        "lines left out by the kernel": 41,
        "conntrack table full": 5,
        "lines lost by the log": 3,
    }


@pytest.mark.parametrize(
    "line",
    [
        "usb 1-1: 5 callbacks suppressed",
        "Nov 28 07:00:00 router sshd[7]: nf_conntrack: table full, dropping packet",
        "audit: net_ratelimit: 5 callbacks suppressed",
    ],
)
def test_lines_of_others_are_no_notices(line: str) -> None:
    assert read(f"{line}\n")[0].notices == {}


def test_trace_lines_are_no_packets() -> None:
    (record,) = records(tcp("TRACE: mangle:PREROUTING:rule:1 "))
    assert "these are lines, not packets" in record["meaning"]


def test_a_line_that_syslog_folded() -> None:
    line = tcp("nf_ct_proto_6: invalid new ")
    header = "Nov 28 07:00:00 router kernel: "
    (record,) = records(
        f"{header}[   12.345678] {line}",
        f"{header}message repeated 4 times: [ [   12.345678] {line.rstrip()}]\n",
    )
    assert (record["packets"], record["reason"]) == (5, Reason.NO_ENTRY)


def test_a_line_that_came_again() -> None:
    """As sysklogd and BSD write it: of the line before, whatever that is."""
    header = "Nov 28 07:00:00 router "
    again = f"{header}last message repeated 4 times\n"
    full = f"{header}kernel: nf_conntrack: table full, dropping packet\n"
    suppressed = f"{header}kernel: net_ratelimit: 10 callbacks suppressed\n"
    other = f"{header}sshd[7]: closed\n"
    packet = header + "kernel: " + tcp("nf_ct_proto_6: invalid new ")
    (record,) = records(packet, again, other, again)
    assert (record["packets"], record["last_line"]) == (5, 2)
    said = f"{header}sshd[7]: last message repeated 4 times\n"
    (record,) = records(packet, said)
    assert record["packets"] == 1
    reader, _ = read(full + again + other + again + suppressed + again + full)
    counts = {notice.title: noticed.count for notice, noticed in reader.notices.items()}
    assert counts == {"conntrack table full": 6, "lines left out by the kernel": 50}


def test_other_packets() -> None:
    six = "SRC=fd00:0000:0000:0000:0000:0000:0000:0001 DST=fd00:0000:0000:0000:0000:0000:0000:0002"
    _, (udp, error, esp, cut) = read(
        f"a IN=eth0 OUT=eth1 {six} LEN=40 TC=0 HOPLIMIT=64 FLOWLBL=0 PROTO=UDP SPT=5 DPT=53 LEN=9\n"
        "b IN=eth0 OUT= SRC=10.0.0.9 DST=10.0.0.1 LEN=68 PROTO=ICMP TYPE=3 CODE=1 "
        "[SRC=10.0.0.1 DST=10.0.0.2 PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x00 SYN URGP=0 ] \n"
        "c IN= OUT=eth0 SRC=10.0.0.9 DST=10.0.0.1 LEN=68 PROTO=50 SPI=0x1\n"
        "d IN=eth0 OUT= SRC=10.0.0.9 DST=10.0.0.1 PROTO=TCP SPT=1 DPT=2 SEQ=1 ACK=1 WINDOW=1 A\n"
    )
    assert (udp.proto, udp.src, udp.sport, udp.dport) == ("udp", "fd00::1", 5, 53)
    assert (error.proto, error.sport, error.flags) == ("icmp", None, None)
    assert (esp.proto, esp.seq) == ("50", None)
    assert (cut.flags, cut.seq, cut.ack) == (None, 1, None)


def test_options_of_ip_are_not_those_of_tcp() -> None:
    """As the kernel writes them with --log-ip-options and --log-tcp-options."""
    line = tcp("x ", options="OPT (01050A0000000A0000001400) ")
    (packet,) = read(line.replace("DF PROTO", "DF OPT (0707040000000000) PROTO"))[1]
    assert packet.options == bytes.fromhex("01050A0000000A0000001400")


@pytest.mark.parametrize(
    "line",
    [
        tcp("x ", options="OPT (0101050A0000157C00001770) "),
        "b IN=eth0 OUT= SRC=10.0.0.9 DST=10.0.0.1 LEN=68 PROTO=UDP SPT=41770 DPT=5353 LEN=48 \n",
    ],
)
def test_no_number_of_a_line_that_was_cut_off_is_wrong(line: str) -> None:
    (whole,) = read(line)[1]
    for length in range(line.index("PROTO=") + len("PROTO=UDP"), len(line)):
        (packet,) = read(line[:length])[1]
        for name in ("proto", "src", "dst", "sport", "dport", "seq", "ack", "flags"):
            assert getattr(packet, name) in (None, getattr(whole, name)), (name, line[:length])
        assert packet.options in (b"", whole.options)


@pytest.mark.parametrize(
    "line",
    [
        "x IN=eth0 OUT= \n",
        "x IN=eth0 OUT= SRC=10.0.0.1 DST=10.0.0 PROTO=TCP\n",
        "x IN=eth0 OUT= SRC=10.0.0.1 DST=10.0.0.2 PROTO=T\x1b[31m\n",
        "x IN=eth0 OUT= SRC=10.0.0.1 DST=10.0.0.2 PROTO=TCP SPT=65536 DPT=1\n",
        "x IN=eth0 OUT= SRC=10.0.0.1 DST=10.0.0.2 PROTO=TCP SPT=1 DPT=1 SEQ=99999999999 ACK=1\n",
        "x IN=eth0 OUT= SRC=10.0.0.1 DST=10.0.0.2 PROTO=TCP SPT=\u0663 DPT=1\n",
        tcp("x" * LINE_MAX_BYTES),
        tcp("x" * (3 * LINE_MAX_BYTES)).rstrip("\n"),
    ],
)
def test_lines_without_a_whole_packet_are_counted(line: str) -> None:
    reader, packets = read(line)
    assert packets == []
    assert (reader.lines, reader.skipped) == (1, 1)


def test_lines_about_other_things_are_not_counted_as_skipped() -> None:
    reader, packets = read("usb 1-1: new device\n\neth0: link up\n")
    assert (packets, reader.lines, reader.skipped) == ([], 3, 0)


@given(st.binary(max_size=300))
def test_any_octets_are_read(octets: bytes) -> None:
    line = tcp("nf_ct_proto_6: invalid new ").encode()
    reader = LogReader()
    for packet in reader.read(io.BytesIO(octets + b"\n" + line + octets)):
        Groups().add(packet)
    assert reader.lines >= 2


@pytest.mark.parametrize(
    ("text", "verdict", "reason", "ignored"),
    [
        ("6: SEQ is over upper bound 1001", "invalid", Reason.SEQ_OVER, None),
        (
            "6: ACK is over the upper bound (ACKed data not seen yet)",
            "invalid",
            Reason.ACK_OVER,
            None,
        ),
        ("6: invalid rst", "invalid", Reason.RST_OUTSIDE, None),
        ("132: bad CRC", "invalid", Reason.BAD_CHECKSUM, None),
        ("6: SEQ is under lower bound 17", "passes", None, Ignored.SEQ_UNDER),
        (
            "6: 12 bytes more than expected",
            "depends on the kernel",
            Reason.SEQ_OVER,
            Ignored.OVERSHOOT,
        ),
        ("6: a text of another day", "not said", None, None),
    ],
)
def test_what_conntrack_says(
    text: str, verdict: str, reason: Reason | None, ignored: Ignored | None
) -> None:
    (record,) = records(tcp(f"nf_ct_proto_{text} "))
    assert record["source"] == "conntrack"
    assert (record["verdict"], record["reason"], record["ignored"]) == (verdict, reason, ignored)
    assert record["meaning"]
    advice = "" if reason is None else CONSEQUENCES[reason].advice
    assert record["next"].startswith(advice or ("Nothing: " if ignored else "A capture "))


@pytest.mark.parametrize("helper", ["sip", "Q.931", "netbios-ns"])
def test_packets_that_a_helper_drops(helper: str) -> None:
    """Such a packet is not INVALID: its flow is known, and the rules have let it pass."""
    text = f"nf_ct_{helper}: dropping packet: cannot parse cseq "
    (record,) = records(f"{text}IN= OUT= {_IP}{_REST}LEN=32 \n")
    assert (record["source"], record["verdict"], record["reason"]) == ("conntrack", "dropped", None)
    assert "A helper" in record["meaning"]
    assert "remove the rule that assigns it" in record["next"]


def test_a_line_beside_the_reason_is_not_a_second_packet() -> None:
    beside = "nf_ct_proto_6: packet (index 2) in dir 1 invalid, lower timeout to 75000 "
    (record,) = records(tcp("nf_ct_proto_6: SEQ is over upper bound 1001 "), tcp(beside))
    assert record["packets"] == 1


@pytest.mark.parametrize(
    ("text", "options", "numbers"),
    [
        ("SEQ is over upper bound 2001 ", "", (3000, 2000, 1000)),
        ("ACK is over upper bound 4001 ", "", (5000, 4000, 1000)),
        # a block of SACK to 6000
        (
            "ACK is over upper bound 4001 ",
            "OPT (0101050A0000157C00001770) ",
            (6000, 4000, 2000),
        ),
        ("SEQ is over upper bound 9001 ", "", None),  # a helper shifts the numbers
        ("invalid new ", "", None),
    ],
)
def test_the_numbers(text: str, options: str, numbers: tuple[int, int, int] | None) -> None:
    (record,) = records(tcp(f"nf_ct_proto_6: {text}", options=options))
    breach = record["breach"]
    assert numbers == (breach and (breach["actual"], breach["limit"], breach["distance"]))


@pytest.mark.parametrize(("numbers", "flags"), [("", "ACK "), ("SEQ=1 ACK=1 ", "SYN ")])
def test_no_numbers_that_the_line_does_not_have(numbers: str, flags: str) -> None:
    text = "nf_ct_proto_6: ACK is over upper bound 4001 "
    (record,) = records(tcp(text, numbers=numbers, flags=flags))
    assert record["breach"] is None


def test_a_rule_gives_no_reason_but_flags_may() -> None:
    plain, bad, udp = records(
        tcp("[UFW BLOCK] ", "ACK RST "),
        tcp("[UFW BLOCK] ", "ACK RST "),
        tcp("[UFW BLOCK] ", "SYN FIN "),
        "INVALID IN=a OUT= SRC=10.0.0.1 DST=10.0.0.2 PROTO=UDP SPT=1 DPT=2 LEN=8\n",
    )
    assert (plain["source"], plain["reason"], plain["tcp_flags"]) == ("rule", None, "RA")
    assert (plain["packets"], plain["first_line"], plain["last_line"]) == (2, 1, 2)
    assert "does not say why" in plain["meaning"]
    assert (bad["reason"], bad["tcp_flags"]) == (Reason.BAD_FLAGS, "SF")
    assert (udp["reason"], udp["tcp_flags"], udp["verdict"]) == (None, None, "not said")
    assert (
        "By its prefix, the rule is one for packets that conntrack calls INVALID"
        in (udp["meaning"])
    )


def test_memory_is_bounded() -> None:
    lines = [
        tcp(f"rule {number // 10}: ").replace("SPT=40000", f"SPT={number}")
        for number in range(1, 100)
    ]
    found = records(*lines, max_flows=20, max_cases=4)
    assert len(found) <= 20 + 4 + 1
    assert sum(record["packets"] for record in found) == 99
    assert sum(record["packets"] for record in found if record["proto"] is None) == 99 - 20


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["why", *words]) == 0
    return capsys.readouterr().out


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "kern.log.gz"
    lines = [tcp("nf_ct_proto_6: SEQ is over upper bound 2001 ")] * 2
    lines += [tcp("\x1b[2J\u202e ", "SYN ").replace("SPT=40000", f"SPT={n}") for n in range(1, 13)]
    lines += [tcp("nf_ct_proto_6: SEQ is under lower bound 2001 "), "x IN=a OUT= \n"]
    log.write_bytes(gzip.compress("".join(lines).encode()))
    assert main(["why", str(log)]) == 0
    out, err = capsys.readouterr()
    assert out.isascii()
    assert "\x1b" not in out
    assert "seq-over, INVALID: 2 packets\n" in out
    assert "lines 1 to 2, seq 1000 bytes beyond 2000\n" in out
    assert r"logged by the rule '\x1b[2J\u202e', flags S: 12 packets" in out
    assert "2 packets of 2 more flows\n" in out
    assert "ignored seq-under, passes: 1 packet\n" in out
    assert err.endswith("no whole packet: 1\n")
    assert max(map(len, out.splitlines())) <= 100


def test_text_of_packets_that_a_helper_drops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "kern.log"
    log.write_text(
        tcp("nf_ct_sip: dropping packet: cannot parse cseq ") * 2
        + tcp("nf_ct_sip: dropping packet: cannot add expectation ")
    )
    text = run(capsys, str(log))
    assert "refused by a helper, dropped: 2 packets\n" in text
    assert "refused by a helper, dropped: 1 packet\n" in text


def test_text_of_more_rules_than_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "kern.log"
    log.write_text("".join(tcp(f"rule {number}: ") for number in range(MAX_CASES + 5)))
    assert "other lines: 5 packets\n" in run(capsys, str(log))


def test_text_of_what_the_kernel_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "kern.log"
    log.write_text("nf_conntrack: table full, dropping packet\n" * 2)
    text = run(capsys, str(log))
    assert text.startswith("conntrack table full, dropped: 2 packets\n")
    assert "\n  lines 1 to 2\n" in text
    rows = run(capsys, str(log), "--format", "json").splitlines()
    assert [json.loads(row)["packets"] for row in rows] == [2]


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "kern.log"
    log.write_text(tcp("nf_ct_proto_6: invalid new ", "RST "))
    record: dict[str, Any] = json.loads(run(capsys, str(log), "--format", "json"))
    assert record.keys() == LoggedRecord.__required_keys__
    assert (record["reason"], record["src"], record["packets"]) == ("no-entry", "10.8.0.1", 1)


def test_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "kern.log"
    log.write_text("eth0: link up\n")
    assert run(capsys, str(log)) == "no packet in 1 line\n"


@pytest.mark.parametrize(
    ("octets", "found"),
    [
        (b'{"timestamp":"2026-01-02T03:04:05Z","event":"daemon_started"}\n', "events: use report"),
        (b"\x7fELF\x02\x01\x01\0" + bytes(100), "binary data"),
        (b"BZh91AY&SY", "a file compressed by bzip2; gzip, xz and zstd are supported"),
    ],
)
def test_what_is_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], octets: bytes, found: str
) -> None:
    log = tmp_path / "log"
    log.write_bytes(octets)
    assert main(["why", str(log)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nfq-guard: {log}: expected a log of the kernel, found {found}")
    # A log may begin with zero bytes after a crash of its host, and be JSON.
    log.write_bytes(bytes(4096) + b"\n" + tcp("nf_ct_proto_6: invalid rst ", "RST ").encode())
    assert "1 packet" in run(capsys, str(log))
    log.write_bytes(b'{"MESSAGE":"eth0: link up"}\n')
    assert run(capsys, str(log)) == "no packet in 1 line\n"


@pytest.mark.parametrize("words", [[], ["kern.log", "--journal"], ["/nonexistent"]])
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_capture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture = tmp_path / "x.pcap"
    capture.write_bytes(bytes.fromhex("d4c3b2a1") + bytes(20))
    assert main(["why", str(capture)]) == 2
    assert "use replay or explain" in capsys.readouterr().err


def journal(folder: Path, script: str, patch: pytest.MonkeyPatch) -> None:
    program = folder / "journalctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    patch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel.txt").write_text(tcp("nf_ct_proto_6: invalid rst ", "RST "))
    script = f'test "$1" = --dmesg && cat {tmp_path}/kernel.txt'
    journal(tmp_path, script, monkeypatch)
    assert "rst-outside, INVALID: 1 packet\n" in run(capsys, "--journal")


def test_a_journal_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal(tmp_path, "exit 3", monkeypatch)
    assert main(["why", "--journal"]) == 69
    assert capsys.readouterr().err == "nfq-guard: journalctl: exit status 3\n"
    # The status of journalctl is 0 where no journal is found.
    journal(tmp_path, "exit 0", monkeypatch)
    assert main(["why", "--journal"]) == 69
    assert "there is no journal, or none that this user may read" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["why", "--journal"]) == 69
    assert "journalctl: cannot be started" in capsys.readouterr().err


def test_a_checksum_that_conntrack_computes_wrongly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It calls correct packets of UDP-Lite damaged: no reason to drop them or to change a NIC."""
    lite = tcp("nf_ct_proto_136: bad checksum ").replace("PROTO=TCP", "PROTO=UDPLITE")
    other = tcp("nf_ct_proto_6: bad checksum ")
    first, second = records(lite, lite, other)
    assert (first["reason"], second["reason"]) == (Reason.BAD_CHECKSUM, Reason.BAD_CHECKSUM)
    assert first["next"].startswith("Exempt UDP-Lite (protocol 136) from rules that drop INVALID")
    assert second["next"].startswith("Drop it. ")
    log = tmp_path / "log"
    log.write_text(lite + lite + other, encoding="ascii")
    assert main(["why", str(log)]) == 0
    said = capsys.readouterr().out
    assert said.count("bad-checksum, INVALID") == 2
    assert "The packet is not damaged." in " ".join(said.split())
