# SPDX-License-Identifier: MIT
"""Both formats: intact, truncated and broken."""

import bz2
import gzip
import lzma
import os
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.capture.frame import (
    MAX_FRAME_BYTES,
    CaptureError,
    Frame,
    frame_name,
    own_number,
)
from nfq_guard.capture.reader import Capture, merged
from nfq_guard.cli import main
from nfq_guard.errors import UnavailableError
from tests.support import captures as made

A, B, C = b"a" * 60, b"b" * 61, b"c" * 62


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes data to a file and returns the file's name."""

    def writer(data: bytes, name: str = "capture") -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return writer


def frames_of(name: str) -> list[Frame]:
    capture = Capture(name)
    try:
        return [frame for batch in capture.batches() for frame in batch]
    finally:
        capture.close()


def read(name: str) -> tuple[list[bytes], str | None]:
    capture = Capture(name)
    try:
        octets = [frame.octets for batch in capture.batches() for frame in batch]
    finally:
        capture.close()
    return octets, capture.damage


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("nanoseconds", "fraction"), [(False, 123456), (True, 123456789)])
def test_pcap(write: Callable[..., str], order: str, nanoseconds: bool, fraction: int) -> None:
    file = made.pcap(
        [(7, fraction, A), (8, 0, B)], order=order, nanoseconds=nanoseconds, linktype=101
    )
    first, second = frames_of(write(file))
    assert first.time_ns == 7 * 10**9 + (123456789 if nanoseconds else 123456000)
    assert (first.number, first.linktype, first.wire_len, first.octets) == (1, 101, 60, A)
    assert (second.number, second.time_ns, second.octets) == (2, 8 * 10**9, B)


def test_pcap_with_a_snapshot_length(write: Callable[..., str]) -> None:
    (frame,) = frames_of(write(made.pcap([(1, 0, A)], snaplen=40)))
    assert (frame.wire_len, frame.octets) == (60, A[:40])


@pytest.mark.parametrize("order", "<>")
def test_frames_say_how_many_were_dropped_before_them(
    write: Callable[..., str], order: str
) -> None:
    """The option epb_dropcount; the statistics of the interface may count the same frames."""
    seven = (4, struct.pack(order + "Q", 7))
    frames = [made.enhanced(A[:49], order=order, more=more) for more in ((), (seven,))]
    frames.append(made.enhanced(B, order=order, more=((1, b"words"), seven)))
    frames.append(made.enhanced(C, order=order, more=((1, b"odd"), (4, b"four"))))
    opening = made.section(order) + made.interface(order=order)
    for statistics, drops in ((b"", 14), (made.statistics(0, ifdrop=9, osdrop=8, order=order), 17)):
        capture = Capture(write(opening + b"".join(frames) + statistics))
        with closing(capture):
            assert sum(len(some) for some in capture.batches()) == 4
            assert capture.drops == drops
    # An option that is longer than its block.
    head = struct.pack(order + "IIIII", 0, 0, 0, 4, 4) + b"data"
    tail = struct.pack(order + "HHHH", 1, 0, 4, 8)
    capture = Capture(write(opening + made.block(made.ENHANCED_PACKET, head + tail, order)))
    with closing(capture):
        assert sum(len(some) for some in capture.batches()) == 1
        assert capture.drops == 0


@pytest.mark.parametrize("order", "<>")
def test_pcapng(write: Callable[..., str], order: str) -> None:
    """Interfaces with different clocks, all three packet blocks, and a block to skip."""
    file = (
        made.section(order)
        + made.interface(1, order=order, snaplen=50)
        + made.interface(101, tsresol=9, order=order)
        + made.interface(276, tsresol=0x80 | 10, tsoffset=-5, order=order)
        + made.block(made.NAMES, bytes(8), order)
        + made.enhanced(A, 2_000_001, order=order)
        + made.enhanced(B, 2_000_000_003, number=1, order=order)
        + made.enhanced(C, 10 << 10 | 512, number=2, order=order)
        + made.simple(A[:50], 60, order=order)
        + made.obsolete(B, 9_000_000, number=0, order=order)
    )
    frames = frames_of(write(file))
    assert [frame.time_ns for frame in frames] == [
        2_000_001_000,
        2_000_000_003,
        5_500_000_000,
        5_500_000_000,
        9_000_000_000,
    ]
    assert [frame.linktype for frame in frames] == [1, 101, 276, 1, 1]
    assert [frame.octets for frame in frames] == [A, B, C, A[:50], B]
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 5]
    assert frames[3].wire_len == 60


@pytest.mark.parametrize("offset", [-(1 << 63), 0, (1 << 63) - 1])
def test_pcapng_with_times_that_no_calendar_has(write: Callable[..., str], offset: int) -> None:
    """Such a frame gets the time of the one before it."""
    file = (
        made.section()
        + made.interface(1)
        + made.interface(1, tsoffset=offset)
        + made.enhanced(A, 5_000_000)
        + made.enhanced(B, (1 << 64) - 1, number=1)
        + made.obsolete(C, (1 << 64) - 1, number=1)
    )
    assert [frame.time_ns for frame in frames_of(write(file))] == [5 * 10**9] * 3


def test_each_section_has_its_own_interfaces(write: Callable[..., str]) -> None:
    """The second section has the other byte order and its own interface 0."""
    file = (
        made.section("<")
        + made.interface(1)
        + made.enhanced(A)
        + made.section(">")
        + made.interface(101, order=">")
        + made.enhanced(B, order=">")
    )
    assert [(frame.linktype, frame.octets) for frame in frames_of(write(file))] == [
        (1, A),
        (101, B),
    ]


def zstd(octets: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(octets)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd])
def test_compressed(write: Callable[..., str], compress: Callable[[bytes], bytes]) -> None:
    file = made.pcap([(second, 0, A) for second in range(20_000)])
    octets, damage = read(write(compress(file)))
    assert len(octets) == 20_000
    assert damage is None


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd])
def test_compressed_in_two_members(
    write: Callable[..., str], compress: Callable[[bytes], bytes]
) -> None:
    """Rotated files are often concatenated."""
    file = made.pcap([(1, 0, A), (2, 0, B)])
    assert read(write(compress(file[:50]) + compress(file[50:]))) == ([A, B], None)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd])
def test_compressed_and_truncated(
    write: Callable[..., str], compress: Callable[[bytes], bytes]
) -> None:
    """The frames decompressed before the end are kept."""
    whole = compress(made.pcap([(second, 0, os.urandom(1000)) for second in range(1_500)]))
    octets, damage = read(write(whole[: len(whole) // 2]))
    assert 600 < len(octets) < 900
    assert damage is not None
    assert "the compressed file is truncated" in damage


def test_gzip_followed_by_other_data(write: Callable[..., str]) -> None:
    octets, damage = read(write(gzip.compress(made.pcap([(1, 0, A)])) + b"\xe5\x1dother"))
    assert octets == [A]
    assert damage is not None
    assert damage.endswith("decompression failed: other data than gzip follows")


def test_zstd_truncated_anywhere(write: Callable[..., str]) -> None:
    """With a checksum, without a size, with blocks of a repeated byte, and with a skipped frame."""
    skipped = b"\x5f\x2a\x4d\x18\x03\0\0\0abc"
    stream = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    octets = made.pcap([(second, 0, bytes(90_000)) for second in range(3)])
    first = stream.compress(octets) + stream.flush()
    whole = first + skipped + zstd(made.pcap([(3, 0, A)])[24:])
    assert read(write(whole)) == ([bytes(90_000)] * 3 + [A], None)
    # The end of a frame is no damage.
    ends = {len(first), len(first + skipped)}
    for kept in set(range(4, len(whole))) - ends:
        name = write(whole[:kept])
        try:
            _, damage = read(name)
        except CaptureError as error:
            damage = str(error)
        assert damage is not None
        assert "the compressed file is truncated" in damage


def test_closed_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    for words in (["replay", "-"], ["why", "-"], ["whatif", "-", "--policy", "preset:strict"]):
        assert main(words) == 2
        assert "standard input: " in (error := capsys.readouterr().err)
        assert error.endswith("it is closed\n")


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd])
def test_compressed_and_broken(
    write: Callable[..., str], compress: Callable[[bytes], bytes]
) -> None:
    whole = bytearray(
        compress(made.pcap([(second, 0, os.urandom(1000)) for second in range(1_500)]))
    )
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    octets, damage = read(write(bytes(whole)))
    assert len(octets) <= 1_500
    assert damage is not None


def test_without_zstd(write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(zstd(made.pcap([(1, 0, A)])))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(UnavailableError, match=r"zstd needs (the package zstandard|a Python)"):
        Capture(name)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, gzip.compress(made.pcap([(1, 0, A)])))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        capture = Capture("-")
        assert capture.name == "standard input"
        assert capture.total is None
        assert [frame.octets for batch in capture.batches() for frame in batch] == [A]
        capture.close()


@pytest.mark.parametrize("kept", [1, 15, 17, 60])
def test_truncated_pcap(write: Callable[..., str], kept: int) -> None:
    """The frames before the end are kept, and its place is reported."""
    whole = made.pcap([(1, 0, A), (2, 0, B)])
    octets, damage = read(write(whole[: 24 + 76 + kept]))
    assert octets == [A]
    assert damage is not None
    assert damage.endswith("read up to frame 1: the file is truncated in the record at byte 100")


def test_truncated_pcapng(write: Callable[..., str]) -> None:
    head = made.section() + made.interface() + made.enhanced(A)
    octets, damage = read(write(head + made.enhanced(B)[:-1]))
    assert octets == [A]
    assert damage is not None
    assert f"truncated in the record at byte {len(head)}" in damage


BAD_BLOCKS = {
    "a block claims 13 bytes": made.block(6, b"x")[:13],
    "a block claims 4294967295 bytes": b"\x06\0\0\0" + b"\xff" * 12,
    "the two lengths of a block differ": made.block(6, bytes(20))[:-4] + bytes(4),
    "a packet block is too short": made.block(6, bytes(12)),
    "a packet block claims 60 bytes": made.enhanced(A).replace(A, A[:-4])[:8]
    + made.block(6, b"\0" * 12 + b"\x3c\0\0\0\x3c\0\0\0")[8:],
    "undeclared interface 9": made.enhanced(A, number=9),
    "a section header has no byte order": made.block(made.SECTION, bytes(16)),
    "unknown pcapng version 2": made.section(major=2),
    "a section header is too short": made.block(made.SECTION, b"\x4d\x3c\x2b\x1a" + bytes(4)),
    "an interface block is too short or exceeds the limit": made.block(1, bytes(4)),
    "a simple packet block claims 4000 bytes": made.simple(A, 4000),
    "a simple packet block lacks an interface or a length": made.block(3, b""),
}


@pytest.mark.parametrize(("problem", "bad"), BAD_BLOCKS.items(), ids=BAD_BLOCKS)
def test_broken_block(write: Callable[..., str], problem: str, bad: bytes) -> None:
    """The frames before the block are kept; a broken length allocates no memory."""
    head = made.section() + made.interface() + made.enhanced(A)
    if "claims 60" in problem:
        bad = bad[:4] + len(bad).to_bytes(4, "little") + bad[8:]
    octets, damage = read(write(head + bad))
    assert octets == [A]
    assert damage is not None
    assert damage.endswith(f"read up to frame 1: broken at byte {len(head)}: {problem}")


@pytest.mark.parametrize(
    "bad",
    [
        made.block(2, bytes(8)),
        made.obsolete(A, number=3),
        made.block(2, b"\0" * 12 + b"\xff\0\0\0" * 2),
    ],
)
def test_broken_obsolete_block(write: Callable[..., str], bad: bytes) -> None:
    octets, damage = read(write(made.section() + made.interface() + made.enhanced(A) + bad))
    assert octets == [A]
    assert damage is not None


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_joined_pcap_files(write: Callable[..., str], order: str, nanoseconds: bool) -> None:
    """The header of the second file is no frame of the year 2055."""
    first = made.pcap([(1, 0, A)])
    second = made.pcap([(2, 0, A)], order=order, nanoseconds=nanoseconds)
    octets, damage = read(write(first + second))
    assert octets == [A]
    assert damage is not None
    assert damage.endswith(
        f"read up to frame 1: broken at byte {len(first)}: another capture begins, as in joined "
        "files: name each file instead"
    )


def test_pcap_with_records_without_octets(write: Callable[..., str]) -> None:
    """Also at the second that a magic number is as a time."""
    octets, damage = read(write(made.pcap([(0xA1B2C3D4, 5, b""), (1, 0, b""), (2, 0, A)])))
    assert (octets, damage) == ([b"", b"", A], None)


def test_pcap_with_a_huge_record(write: Callable[..., str]) -> None:
    file = made.pcap([(1, 0, A)]) + bytes(8) + (MAX_FRAME_BYTES + 1).to_bytes(4, "little") * 2
    octets, damage = read(write(file))
    assert octets == [A]
    assert damage is not None
    assert damage.endswith("broken at byte 100: a record claims 1048577 bytes")


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"", "the file is empty"),
        (b"Hello, not a capture.", "expected a pcap or pcapng capture, found a text: events"),
        (b"\xef\xbb\xbf{}", "expected a pcap or pcapng capture, found JSON: events"),
        (
            bz2.compress(b"x"),
            "expected a pcap or pcapng capture, found a file compressed by bzip2; gzip, xz and",
        ),
        (bytes(100), "expected a pcap or pcapng capture, found zero bytes"),
        (
            b"\x01\x02\x03\x04",
            "expected a pcap or pcapng capture, found 01 02 03 04 at byte 0 (where it is a capture",
        ),
        (made.pcap([])[:20], "truncated in the file header"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        (gzip.compress(b"x" * 100, mtime=0)[:12], "the compressed file is truncated"),
    ],
)
def test_not_a_capture(write: Callable[..., str], octets: bytes, problem: str) -> None:
    name = write(octets)
    with pytest.raises(CaptureError) as caught:
        Capture(name)
    assert str(caught.value).startswith(f"{name}: {problem}")
    assert caught.value.exit_status == 2


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="missing: No such file or directory"):
        Capture(str(tmp_path / "missing"))
    with pytest.raises(CaptureError, match="Is a directory"):
        Capture(str(tmp_path))
    with pytest.raises(CaptureError, match=r"^'': the name is empty$"):
        Capture("")


@pytest.mark.parametrize("name", ["/dev/full", "/dev/zero", "/dev/urandom"])
def test_a_device_without_an_end(name: str) -> None:
    """It would be read for ever."""
    with pytest.raises(CaptureError, match=rf"^{name}: a device; expected a file or a pipe$"):
        Capture(name)


def test_the_device_that_ends_at_once() -> None:
    with pytest.raises(CaptureError, match=r"^/dev/null: the file is empty$"):
        Capture("/dev/null")


@pytest.mark.parametrize(
    "octets",
    [made.pcap([(1, 0, A)])[:50], made.section() + made.enhanced(A)],
)
def test_damage_before_the_first_frame(write: Callable[..., str], octets: bytes) -> None:
    with pytest.raises(CaptureError, match="no frame could be read"):
        read(write(octets))


def test_a_capture_without_frames(write: Callable[..., str]) -> None:
    assert read(write(made.pcap([]))) == ([], None)
    assert read(write(made.section())) == ([], None)


def test_merged_by_time(write: Callable[..., str]) -> None:
    """Frames have the numbers of their files; `source` identifies the file."""
    names = [
        write(made.pcap([(1, 0, A), (4, 0, A)]), "one"),
        write(made.pcap([(second, 0, B) for second in range(3, 3000)]), "two"),
        write(made.section() + made.interface() + made.enhanced(C, 2_000_000), "three"),
    ]
    opened = [Capture(name, source) for source, name in enumerate(names)]
    frames = [frame for batch in merged(opened) for frame in batch]
    assert [frame.source for frame in frames[:5]] == [0, 2, 1, 0, 1]
    assert [own_number(frame.number) for frame in frames[:5]] == [1, 1, 1, 2, 2]
    assert [frame_name(frame.number) for frame in frames[2:5]] == [
        "frame 1 of capture 2",
        "frame 2 of capture 1",
        "frame 2 of capture 2",
    ]
    assert len({frame.number for frame in frames}) == len(frames) == 3000
    for capture in opened:
        capture.close()


def test_one_capture_keeps_its_order(write: Callable[..., str]) -> None:
    capture = Capture(write(made.pcap([(5, 0, A), (1, 0, B)])))
    assert [frame.octets for batch in merged([capture]) for frame in batch] == [A, B]
    assert capture.consumed == capture.total
    capture.close()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file with some bytes changed and its end cut off, or arbitrary bytes."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    good: Any = draw(
        st.sampled_from(
            [
                made.pcap([(1, 0, A), (2, 0, B), (3, 0, C)]),
                made.section()
                + made.interface(tsresol=0xFF)
                + made.enhanced(A)
                + made.simple(B)
                + made.obsolete(C),
                gzip.compress(made.pcap([(1, 0, A)])),
                lzma.compress(made.pcap([(1, 0, A)])),
                zstd(made.pcap([(1, 0, A)])),
            ]
        )
    )
    octets = bytearray(good)
    for _ in range(draw(st.integers(0, 8))):
        octets[draw(st.integers(0, len(octets) - 1))] = draw(st.integers(0, 255))
    return bytes(octets[: draw(st.integers(0, len(octets)))])


@given(octets=mutated())
def test_any_octets(tmp_path_factory: pytest.TempPathFactory, octets: bytes) -> None:
    """Any input yields frames or `CaptureError`."""
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(octets)
    try:
        frames, _ = read(str(path))
    except CaptureError:
        return
    assert sum(map(len, frames)) <= len(octets) * 1100


@pytest.mark.parametrize(
    ("magic", "name"), [(b"snoop\0\0\0", "snoop"), (b"GMBU", "Microsoft Network Monitor")]
)
def test_formats_of_others_have_a_way_out(tmp_path: Path, magic: bytes, name: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(magic + bytes(40))
    with pytest.raises(CaptureError, match=f"a capture of {name}; convert it: editcap -F pcap"):
        Capture(str(path))
