# SPDX-License-Identifier: MIT
"""What treats packets beside the rules of a host: BPF programs, filters of tc, and IPVS."""

import ctypes
import os
import platform
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.doctor import beside_rules, collect
from nfq_guard.doctor.beside_rules import Beside, Filters
from nfq_guard.doctor.check import Status
from nfq_guard.lab.netns import Namespace

# As a kernel 6.12 lists them.
SERVICES = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0050 rr
  -> 0A020002:1F90      Masq    1      0          0
UDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0035 rr
FWM  00000001 rr
"""
CALLS = {"x86_64": 321, "aarch64": 280}
LOAD, CREATE_LINK = 5, 28
NETFILTER, SCHED_CLS = 32, 3
TO_NETFILTER, TO_TCX_EGRESS = 45, 47


def call(command: int, attributes: bytes) -> int:
    """bpf(2); libbpf before 1.3 has no function for a link to netfilter."""
    buffer = ctypes.create_string_buffer(attributes, 144)
    library = ctypes.CDLL(None, use_errno=True)
    descriptor: int = library.syscall(CALLS[platform.machine()], command, buffer, len(buffer))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def program(kind: int, result: int, attached: int = 0) -> int:
    """A program that returns `result` for every packet."""
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, result, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"Dual MIT/GPL")
    addresses = ctypes.addressof(code), ctypes.addressof(licence)
    return call(LOAD, struct.pack("=IIQQ44xI", kind, 2, *addresses, attached))


def test_services_of_ipvs_are_counted() -> None:
    assert beside_rules.services(SERVICES) == 3
    assert beside_rules.services("") == 0


def test_ipvs_is_named() -> None:
    (check,) = beside_rules.checks(Beside(services=3))
    assert (check.id, check.status) == ("foreign.ipvs", Status.NOTE)
    assert "3 virtual services" in check.what


@pytest.mark.parametrize(("conntrack", "ids"), [(0, ["tracking.ipvs"]), (1, []), (None, [])])
def test_half_of_the_connections_of_ipvs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conntrack: int | None, ids: list[str]
) -> None:
    """Measured on a kernel 6.12: with 0 and a drop of INVALID packets nobody connects."""
    (tmp_path / "ip_vs").write_text(SERVICES, encoding="ascii")
    if conntrack is not None:
        (tmp_path / "conntrack").write_text(f"{conntrack}\n", encoding="ascii")
    monkeypatch.setattr(collect, "NET", tmp_path)
    monkeypatch.setattr(beside_rules, "_IPVS_CONNTRACK", tmp_path / "conntrack")
    found = [check.id for check in beside_rules.checks(beside_rules.read())]
    assert [each for each in found if each != "foreign.bpf"] == ["foreign.ipvs", *ids]


def test_servers_that_answer_on_their_own() -> None:
    assert beside_rules.translates(SERVICES)
    assert not beside_rules.translates(SERVICES.replace("Masq ", "Route"))


def test_programs_and_filters_are_named() -> None:
    filters = [Filters(f"lxc{n}", "ingress", ("bpf",)) for n in range(5)]
    (check,) = beside_rules.checks(Beside(xdp=["eth0"], filters=filters, hooks=["IPv4 INPUT"]))
    assert (check.id, check.status) == ("foreign.bpf", Status.NOTE)
    for words in ("XDP on eth0", "tc on lxc0 (ingress, bpf), ", "and 2 more", "at IPv4 INPUT"):
        assert words in check.what


def test_a_host_without_them() -> None:
    assert list(beside_rules.checks(Beside())) == []


@pytest.mark.parametrize("listed", ["", "no JSON", "{}", "[7]"])
def test_programs_that_list_nothing(monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    monkeypatch.setattr(collect, "output", lambda *_: listed)
    found = beside_rules.read()
    assert (found.xdp, found.filters) == ([], [])


def test_a_host_without_libbpf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside_rules, "LIBRARY", "libnone.so.1")
    beside_rules._library.cache_clear()
    try:
        assert beside_rules.read().hooks == []
    finally:
        beside_rules._library.cache_clear()


@pytest.mark.kernel
def test_they_are_read_from_the_kernel(namespace: Callable[[str], Namespace]) -> None:
    space = namespace("beside")
    space.ip("link", "add", "dev0", "type", "veth", "peer", "name", "dev1")
    with space.entered():
        assert beside_rules.read().filters == []
        space.run("tc", "qdisc", "add", "dev", "dev0", "clsact")
        every = ("u32", "match", "u32", "0", "0", "classid", "1:1")
        space.run("tc", "filter", "add", "dev", "dev0", "ingress", *every)
        assert beside_rules.read().filters == [Filters("dev0", "ingress", ("u32",))]


@pytest.mark.kernel
def test_links_of_programs_are_read_from_the_kernel(
    namespace: Callable[[str], Namespace],
) -> None:
    space = namespace("linked")
    space.ip("link", "add", "dev0", "type", "veth", "peer", "name", "dev1")
    opened: list[int] = []
    with space.entered():
        try:
            opened.append(program(NETFILTER, 1, TO_NETFILTER))
            link = struct.pack("=IIIIIIiI", opened[0], 0, TO_NETFILTER, 0, 2, 2, -17, 0)
            opened.append(call(CREATE_LINK, link))
            opened.append(program(SCHED_CLS, -1, TO_TCX_EGRESS))
            index = socket.if_nametoindex("dev0")
            link = struct.pack("=IIII", opened[2], index, TO_TCX_EGRESS, 0)
            opened.append(call(CREATE_LINK, link))
            found = beside_rules.read()
        except (OSError, KeyError) as error:
            pytest.skip(f"this kernel has no links to netfilter and tcx: {error}")
        finally:
            for descriptor in opened:
                os.close(descriptor)
    assert "IPv4 FORWARD with priority -17" in found.hooks
    assert found.filters == [Filters("dev0", "egress", ("bpf",))]
