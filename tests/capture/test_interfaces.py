# SPDX-License-Identifier: MIT
"""The frames of one interface."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.capture.frame import own_number
from nfq_guard.capture.interfaces import _MOST_KNOWN, InterfaceFilter
from nfq_guard.capture.links import ETHERNET, LINUX_SLL2
from nfq_guard.capture.reader import Capture, merged
from nfq_guard.cli import main
from tests.support import captures

Keep = Callable[..., tuple[list[int], str]]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    def kept(wanted: str, *files: bytes) -> tuple[list[int], str]:
        opened = []
        for number, octets in enumerate(files):
            path = tmp_path / f"{number}.pcap"
            path.write_bytes(octets)
            opened.append(Capture(str(path), number))
        chosen = InterfaceFilter(wanted, opened)
        frames = [frame for batch in merged(opened) for frame in chosen.keep(batch)]
        numbers = [own_number(frame.number) for frame in frames]
        for capture in opened:
            capture.close()
        assert chosen.kept == len(numbers)
        return numbers, chosen.seen()

    return kept


def cooked(index: int) -> bytes:
    return struct.pack(">HHIHBB8s", 0x0800, 0, index, 1, 0, 6, bytes(8)) + bytes(20)


TWO = b"".join(
    (
        captures.section(),
        captures.interface(name=b"eth0"),
        captures.interface(name=b"veth1"),
        captures.enhanced(bytes(60), 1, number=0),
        captures.enhanced(bytes(60), 2, number=1),
        captures.obsolete(bytes(60), 3, number=1),
    )
)
# In its second section, interface 0 is another one.
SECTIONS = TWO + b"".join(
    (
        captures.section(),
        captures.interface(name=b"veth1"),
        captures.enhanced(bytes(60), 4, number=0),
        captures.simple(bytes(60)),
    )
)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ("eth0", [1]),
        ("veth1", [2, 3]),
        ("0", [1]),
        ("1", [2, 3]),
        ("2", []),
        ("eth", []),
        ("", []),
        ("\u0661", []),
        ("1" * 11, []),
    ],
)
def test_names_and_indexes(keep: Keep, wanted: str, numbers: list[int]) -> None:
    assert keep(wanted, TWO) == (numbers, "0 (eth0), 1 (veth1)")


def test_interfaces_of_later_sections(keep: Keep) -> None:
    assert keep("veth1", SECTIONS)[0] == [2, 3, 4, 5]
    assert keep("2", SECTIONS)[0] == [4, 5]
    assert keep("eth0", SECTIONS)[0] == [1]


def test_cooked_frames_have_the_index_of_the_kernel(keep: Keep) -> None:
    octets = captures.pcap(
        [(1, 0, cooked(3)), (2, 0, cooked(7)), (3, 0, cooked(3)), (4, 0, bytes(7))],
        linktype=LINUX_SLL2,
    )
    assert keep("3", octets) == ([1, 3], "3, 7, 0")
    assert keep("0", octets)[0] == [4]
    named = b"".join(
        (
            captures.section(),
            captures.interface(LINUX_SLL2, name=b"any"),
            captures.enhanced(cooked(9), 1),
        )
    )
    assert keep("any", named) == ([1], "9 (any)")
    assert keep("9", named)[0] == [1]


def test_each_file_has_its_own(keep: Keep) -> None:
    plain = captures.pcap([(9, 0, bytes(60))], linktype=ETHERNET)
    assert keep("eth0", TWO, plain)[0] == [1]
    assert keep("0", TWO, plain)[0] == [1, 1]


def test_an_interface_without_a_name_is_not_taken_by_an_empty_one(keep: Keep) -> None:
    unnamed = b"".join(
        (captures.section(), captures.interface(name=b""), captures.enhanced(bytes(60), 1))
    )
    assert keep("", unnamed) == ([], "0")


def test_what_is_remembered_is_bounded(keep: Keep) -> None:
    count = _MOST_KNOWN + 10
    octets = captures.pcap(
        [(1, number, cooked(number)) for number in range(count)], linktype=LINUX_SLL2
    )
    numbers, seen = keep(str(count - 1), octets)
    assert numbers == [count]
    assert seen.endswith(f"15 and {_MOST_KNOWN - 16} more")


def test_replay_of_one_interface(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.pcapng"
    path.write_bytes(TWO)
    assert main(["replay", "--interface", "veth1", "--summary", "--format", "json", str(path)]) == 0
    assert '"frames":2,' in capsys.readouterr().out


@pytest.mark.parametrize("name", ["eth9", "\x1b[2J"])
def test_an_unknown_interface_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hostile.pcapng"
    path.write_bytes(TWO.replace(b"veth1", b"\x1b[2Jx"))
    assert main(["replay", "--interface", name, str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"nfq-guard: --interface: no frame of {name!a}; there are frames of interface 0 (eth0), "
        "1 (\\x1b[2Jx)\n"
    )
