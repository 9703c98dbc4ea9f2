# SPDX-License-Identifier: MIT
import errno
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nfq_guard.errors import EXIT_NOT_FINE, BusyError, ShortageError, UnavailableError
from nfq_guard.flow import Hook
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.pace import limit
from nfq_guard.netlink.owner import process_of
from nfq_guard.nfqueue import counters, requests
from nfq_guard.nfqueue import reader as reader_module
from nfq_guard.nfqueue.reader import QueueReader
from nfq_guard.nfqueue.verdicts import VerdictSender
from nfq_guard.wire.packet import CHECKSUM_GOOD, CHECKSUM_UNFINISHED, CHECKSUM_UNVERIFIED
from tests.support.queue import PORT, QUEUE, Datagrams, import_path, kernel_line, queue_udp

pytestmark = pytest.mark.kernel
Make = Callable[[str], Namespace]


@contextmanager
def bound(
    namespace: Namespace, *, copy_bytes: int = 256, queue_length: int = 1024
) -> Iterator[tuple[QueueReader, VerdictSender]]:
    with (
        namespace.entered(),
        QueueReader(QUEUE, copy_bytes=copy_bytes, queue_length=queue_length) as reader,
    ):
        yield reader, VerdictSender(reader.socket, QUEUE)


def test_every_packet_once_in_order(namespace: Make) -> None:
    """Alternating verdicts in one call: only the accepted packets arrive, and none waits."""
    inside = namespace("q")
    queue_udp(inside)
    with Datagrams(inside) as udp, bound(inside) as (reader, verdicts):
        udp.send(200)
        seen: list[int] = []
        while True:
            ids, batch = reader.drain(64)
            if not ids:
                break
            assert len(ids) <= 64
            verdicts.send(ids, [one % 2 for one in ids], [None] * len(ids))
            seen += ids
            assert all(queued.octets[0] == 0x45 for queued in batch)
        assert seen == list(range(1, 201))
        assert kernel_line(inside).waiting == 0
        assert udp.received() == [one - 1 for one in seen if one % 2]
        assert reader.verdict_errors == 0


def test_the_owner_is_who_uses_the_queue(namespace: Make) -> None:
    """systemd, which stores sockets of services, is named only while no other process has it."""
    inside = namespace("q")
    name = Path("/proc/self/comm")
    before = name.read_text()
    with bound(inside) as (reader, _):
        try:
            # This process precedes its child in /proc.
            name.write_text("systemd")
            with subprocess.Popen(["sleep", "60"], pass_fds=[reader.fileno()]) as child:
                with inside.entered():
                    port = counters.all_queues()[QUEUE].port_id
                    assert process_of(port) == f"sleep (pid {child.pid})"
                child.kill()
            with inside.entered():
                assert process_of(port) == f"systemd (pid {os.getpid()})"
        finally:
            name.write_text(before)


# Python does not name it.
_NETLINK_NETFILTER = 12
# In a process of its own: binding holds the lock of the interpreter.
_NUMBERED_FLOOD = f"""
import socket
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
number = 0
while True:
    out.sendto(number.to_bytes(4, "big"), ("127.0.0.1", {PORT}))
    number += 1
"""


def test_packets_that_come_while_it_binds(namespace: Make) -> None:
    """The first packet of the queue follows the last that passed without it; none is discarded."""
    inside = namespace("q")
    queue_udp(inside)
    with inside.entered():
        first_address = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    # With it taken, each reader gets an address of its own. Otherwise a CPU that was about to queue
    # a packet to one reader sends it to the next.
    first_address.bind((os.getpid(), 0))
    with Datagrams(inside) as udp:
        flood = inside.popen(sys.executable, "-c", _NUMBERED_FLOOD)
        followed = 0
        try:
            for _ in range(100):
                passed: list[int] = []
                while not passed:
                    passed += udp.received()
                with bound(inside, queue_length=8192) as (reader, verdicts):
                    ids, batch = reader.drain(64)
                    while not ids:
                        ids, batch = reader.drain(64)
                    assert ids == list(range(1, 1 + len(ids)))
                    assert (reader.unread, reader.lost, reader.refused) == (0, 0, [])
                    verdicts.send(ids, [1] * len(ids), [None] * len(ids))
                    first = int.from_bytes(batch[0].octets[28:32], "big")
                    followed += first - 1 in passed + udp.received()
        finally:
            first_address.close()
            flood.kill()
            flood.communicate()
    # Another CPU may find the queue between two steps of the kernel, which drops its packet. That
    # was one of 1,200 at this rate; between two requests nearly each of them loses one.
    assert followed >= 90


class _SlowSocket(socket.socket):
    """A socket of netlink that is not read before packets have overrun its buffer."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        deadline = time.monotonic() + limit(10)
        while not counters.all_queues()[QUEUE].user_dropped and time.monotonic() < deadline:
            time.sleep(0.01)
        return super().recv(bufsize, flags)


def test_packets_that_overrun_the_buffer_while_it_binds(
    namespace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no refusal, and count as lost."""
    inside = namespace("q")
    queue_udp(inside)
    with Datagrams(inside) as udp:
        flood = inside.popen(sys.executable, "-c", _NUMBERED_FLOOD)
        try:
            while not udp.received():
                pass
            with inside.entered():
                monkeypatch.setattr(socket, "socket", _SlowSocket)
                reader = QueueReader(QUEUE, socket_buffer_bytes=4096)
                monkeypatch.undo()
                with reader:
                    assert reader.lost == 1
                    assert reader.drain(1)[0] == [1]
        finally:
            flood.kill()
            flood.communicate()


def test_packets_that_overfill_the_queue_while_it_binds(
    namespace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They follow the fail mode, which holds as soon as the queue is bound."""
    inside = namespace("q")
    queue_udp(inside)
    for fail_open, dropped in ((True, 0), (False, 40)):
        with Datagrams(inside) as udp:

            class _LateSocket(socket.socket):
                """A socket of netlink; packets come before it is read for the first time."""

                def recv(self, bufsize: int, flags: int = 0, /, udp: Datagrams = udp) -> bytes:
                    udp.send(50)
                    return super().recv(bufsize, flags)

            with inside.entered():
                monkeypatch.setattr(socket, "socket", _LateSocket)
                reader = QueueReader(QUEUE, queue_length=10, fail_open=fail_open)
                monkeypatch.undo()
            with reader:
                assert kernel_line(inside).queue_dropped == dropped
                assert len(udp.received()) == 40 - dropped
                assert reader.drain(64)[0] == list(range(1, 11))
                assert reader.refused == []


def kept_of(reader: QueueReader | socket.socket) -> socket.socket:
    """A copy of the socket of a reader that will end, as systemd would store it."""
    return socket.socket(fileno=os.dup(reader.fileno()))


def test_packets_wait_for_the_next_reader(namespace: Make) -> None:
    """Unread packets are read; the last id shows which were read without a verdict."""
    inside = namespace("q")
    queue_udp(inside, bypass=False)
    with Datagrams(inside) as udp, inside.entered():
        with QueueReader(QUEUE, copy_bytes=128, queue_length=5) as first:
            udp.send(4)
            ids, _ = first.drain(3)
            VerdictSender(first.socket, QUEUE).send(ids[:1], [1], [None])
            kept = kept_of(first)
        udp.send(2)
        assert kernel_line(inside).waiting == 5
        with QueueReader(QUEUE, copy_bytes=100, queue_length=7, kept=kept) as second:
            assert (second.taken_over, second.unread) == (True, -1)
            udp.send(2, size=1000)
            verdicts = VerdictSender(second.socket, QUEUE)
            ids, batch = second.drain(64)
            assert ids == [4, 5, 6, 7, 8]
            assert len(batch[-1].octets) == kernel_line(inside).copy_bytes == 100
            assert (second.unread, second.missing) == (3, 0)
            for _ in range(2):  # the second time there is none
                verdicts.send_up_to(3, 0)
            assert kernel_line(inside).waiting == 5
            verdicts.send(ids, [1] * 5, [None] * 5)
            assert second.drain(64) == ([], [])
            assert second.verdict_errors == 0
            assert udp.received() == [0, 3, 0, 1, 0, 1]
        assert QUEUE not in counters.all_queues()


def test_the_socket_of_another_queue_is_closed(namespace: Make) -> None:
    """A socket that does not verifiably own the queue is closed too."""
    inside = namespace("q")
    with inside.entered():
        with QueueReader(QUEUE + 1) as other:
            kept = kept_of(other)
            with QueueReader(QUEUE, kept=kept) as reader:
                assert (reader.taken_over, kept.fileno()) == (False, -1)
                assert {QUEUE, QUEUE + 1} <= counters.all_queues().keys()
                kept = kept_of(reader)
        with (
            pytest.MonkeyPatch.context() as patch,
            kept_of(kept) as again,  # systemd's
        ):
            patch.setattr(counters, "owner", lambda _: None)
            with QueueReader(QUEUE, kept=kept) as reader:
                assert not reader.taken_over
                patch.undo()
                owner = counters.owner(QUEUE)
                assert owner is not None
                assert owner.port_id not in {0, again.getsockname()[0]}


def test_hook_interface_and_mark(namespace: Make) -> None:
    inside = namespace("q")
    inside.run(
        *("iptables", "-t", "mangle", "-A", "OUTPUT", "-p", "udp", "-j", "MARK"),
        *("--set-mark", "0x1234"),
    )
    queue_udp(inside)
    with Datagrams(inside, "::1") as six, Datagrams(inside) as udp, bound(inside) as (reader, _):
        udp.send(1)
        six.send(1)
        _, (four, other) = reader.drain(10)
        assert (four.hook, four.indev, four.outdev, four.mark) == (Hook.OUTPUT, "", "lo", 0x1234)
        assert (other.octets[0] >> 4, other.mark) == (6, 0)


def test_verdict_sets_the_mark(namespace: Make) -> None:
    """A later table sees the mark of the verdict, of a run and of a single packet."""
    inside = namespace("q")
    queue_udp(inside)
    match = ("-p", "udp", "-m", "mark", "--mark", "0x1000")
    inside.run("iptables", "-A", "OUTPUT", *match, "-j", "ACCEPT")
    inside.run("iptables", "-A", "OUTPUT", "-p", "udp", "-j", "DROP")
    with Datagrams(inside) as udp, bound(inside) as (reader, verdicts):
        udp.send(5)
        ids, _ = reader.drain(10)
        verdicts.send(ids, [1] * 5, [0x1000, 0x1000, None, None, 0x1000])
        assert udp.received() == [0, 1, 4]


def test_large_packets_are_cut(namespace: Make) -> None:
    inside = namespace("q")
    queue_udp(inside)
    with Datagrams(inside) as udp, bound(inside, copy_bytes=128) as (reader, verdicts):
        udp.send(1, size=60_000)
        ids, (queued,) = reader.drain(10)
        assert len(queued.octets) == 128
        verdicts.send(ids, [1], [None])
        assert udp.received() == [0]


def test_checksum_as_the_kernel_knows_it(namespace: Make) -> None:
    """With GSO requested, checksums of local packets are unfinished, received ones unverified."""
    inside = namespace("q")
    queue_udp(inside)
    queue_udp(inside, chain="PREROUTING")
    with Datagrams(inside) as udp, bound(inside) as (reader, verdicts):
        udp.send(1)
        ids, (sent,) = reader.drain(10)
        assert sent.checksum == CHECKSUM_UNFINISHED
        verdicts.send(ids, [1], [None])
        _, (received,) = reader.drain(10)
        assert received.hook == Hook.PREROUTING
        assert received.checksum in {CHECKSUM_GOOD, CHECKSUM_UNFINISHED, CHECKSUM_UNVERIFIED}
        assert reader.refused == []


def test_super_packets_come_whole(namespace: Make) -> None:
    """With the flag GSO the guard judges the super-packet, as conntrack did."""
    inside = namespace("q")
    inside.run(
        *("iptables", "-t", "mangle", "-A", "OUTPUT", "-p", "tcp", "--dport", "5001"),
        *("-j", "NFQUEUE", "--queue-num", str(QUEUE), "--queue-bypass"),
    )
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 5001));"
        "c = socket.create_connection(('127.0.0.1', 5001)); c.sendall(bytes(200000))"
    )
    with bound(inside) as (reader, verdicts):
        client = inside.popen(sys.executable, "-c", code)
        longest = 0
        deadline = time.monotonic() + limit(10)
        while longest <= 65_483 // 2 and time.monotonic() < deadline:
            ids, batch = reader.drain(64)
            verdicts.send(ids, [1] * len(ids), [None] * len(ids))
            lengths = [int.from_bytes(queued.octets[2:4], "big") for queued in batch]
            longest = max([longest, *lengths])
            cut = [queued for queued in batch if queued.wire_len]
            assert all(queued.wire_len > len(queued.octets) for queued in cut)
            assert all(
                int.from_bytes(queued.octets[2:4], "big") == queued.wire_len for queued in cut
            )
        client.kill()
        client.communicate()
        assert longest > 32_000


def test_full_queue_passes_packets(namespace: Make) -> None:
    inside = namespace("q")
    queue_udp(inside)
    with Datagrams(inside) as udp, bound(inside, queue_length=10) as (reader, verdicts):
        udp.send(50)
        assert udp.received() == list(range(10, 50))
        assert kernel_line(inside).queue_dropped == 0
        ids, _ = reader.drain(64)
        verdicts.send(ids, [1] * len(ids), [None] * len(ids))
        assert udp.received() == list(range(10))


def test_full_queue_without_fail_open_drops(namespace: Make) -> None:
    inside = namespace("q")
    queue_udp(inside)
    with (
        Datagrams(inside) as udp,
        inside.entered(),
        QueueReader(QUEUE, queue_length=10, fail_open=False),
    ):
        udp.send(50)
        assert udp.received() == []
        assert kernel_line(inside).queue_dropped == 40


def test_fail_open_can_be_switched(namespace: Make) -> None:
    inside = namespace("q")
    queue_udp(inside)
    with Datagrams(inside) as udp, bound(inside, queue_length=1) as (reader, _):
        udp.send(3)
        reader.set_fail_open(on=False)
        udp.send(3)
        reader.set_fail_open(on=True)
        udp.send(3)
        assert udp.received() == [1, 2, 0, 1, 2]
        assert kernel_line(inside).queue_dropped == 3


def test_overrun_of_the_socket_is_counted(namespace: Make) -> None:
    """ENOBUFS does not end reading, and every packet that was delivered gets its verdict."""
    inside = namespace("q")
    queue_udp(inside)
    with (
        Datagrams(inside) as udp,
        inside.entered(),
        QueueReader(QUEUE, socket_buffer_bytes=8192, fail_open=False) as reader,
    ):
        verdicts = VerdictSender(reader.socket, QUEUE)
        udp.send(500)
        total = 0
        while ids := reader.drain(64)[0]:
            verdicts.send(ids, [1] * len(ids), [None] * len(ids))
            total += len(ids)
        assert reader.lost >= 1
        line = kernel_line(inside)
        assert line.user_dropped > 0
        assert total + line.user_dropped == 500
        assert line.waiting == 0
        assert len(udp.received()) == total
        udp.send(1)
        assert len(reader.drain(64)[0]) == 1


_IN_A_CONTAINER = """
from nfq_guard.nfqueue.reader import QueueReader
first = QueueReader(0, socket_buffer_bytes=8192)
kept = QueueReader(0, socket_buffer_bytes=65536, kept=first.socket)
print(kept.taken_over, kept.socket_buffer_bytes)
"""


def test_the_buffer_of_a_kept_socket_in_a_container() -> None:
    """Its root may not exceed the limit of the host, but gets what that allows."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", _IN_A_CONTAINER],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": import_path()},
    )
    assert done.stdout.split() == ["True", "65536"]


def test_verdict_for_a_packet_that_is_gone(namespace: Make) -> None:
    inside = namespace("q")
    queue_udp(inside)
    with Datagrams(inside) as udp, bound(inside) as (reader, verdicts):
        verdicts.send([77], [1], [None])
        udp.send(1)
        assert len(reader.drain(64)[0]) == 1
        assert reader.verdict_errors == 1


def test_packets_of_an_interface_that_went_down(namespace: Make) -> None:
    """The kernel drops them, counts them nowhere, and refuses their one verdict message."""
    inside = namespace("q")
    queue_udp(inside)
    with Datagrams(inside) as udp, bound(inside) as (reader, verdicts):
        udp.send(20)
        inside.ip("link", "set", "lo", "down")
        ids, _ = reader.drain(64)
        assert len(ids) == 20
        verdicts.send(ids, [1] * 20, [None] * 20)
        inside.ip("link", "set", "lo", "up")
        udp.send(1)
        assert len(reader.drain(64)[0]) == 1
        assert (verdicts.messages, reader.verdict_errors) == (1, 1)
        columns = inside.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout.split()
        assert columns[5:7] == ["0", "0"]


def test_owner_is_named(namespace: Make) -> None:
    """Also where a descriptor before that of its socket is closed while all are looked through."""
    inside = namespace("q")
    # The descriptor with which that is listed takes the place of this one.
    with Path(os.devnull).open("rb") as before, bound(inside) as (reader, _):
        assert before.fileno() < reader.fileno()
        before.close()
        port = reader.socket.getsockname()[0]
        with pytest.raises(BusyError) as raised:
            QueueReader(QUEUE)
        expected = f"queue {QUEUE} is owned by netlink port {port}, "
        assert str(raised.value).startswith(expected)
        assert str(raised.value).endswith(f"(pid {os.getpid()})")


def test_owner_that_we_may_not_see(namespace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root can read the kernel's file; a daemon without it still gets the right status."""
    inside = namespace("q")
    with bound(inside):
        monkeypatch.setattr(counters, "owner", lambda _: None)
        with pytest.raises(BusyError, match="owned by another process, unknown process"):
            QueueReader(QUEUE)


def test_released_when_closed_also_with_children(namespace: Make) -> None:
    """A child must not inherit the queue, or it would keep it bound."""
    inside = namespace("q")
    with bound(inside):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with bound(inside):
            pass
    finally:
        child.kill()
        child.wait()


def test_kernel_without_nfqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("Failed to open NFQueue.")

    monkeypatch.setattr(reader_module, "NetfilterQueue", refuse)
    with pytest.raises(UnavailableError, match="CONFIG_NETFILTER_NETLINK_QUEUE"):
        QueueReader(QUEUE)


@pytest.mark.parametrize("free", [0, 1])
def test_a_shortage_is_no_missing_feature_or_privilege(free: int) -> None:
    """After exit status 69 or 77 systemd would not restart the daemon."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        highest = max(int(entry) for entry in os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers
        taken = [os.dup(0) for _ in range(highest)]
        for number in taken:
            stack.callback(os.close, number)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + free, limits[1]))
        with pytest.raises(ShortageError, match="no socket for the queue: Too many open") as short:
            QueueReader(QUEUE)
    assert short.value.exit_status == EXIT_NOT_FINE


def test_a_queue_that_the_kernel_has_no_memory_for(
    namespace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's answer to the request that binds the queue."""

    def no_memory(_: bytes) -> tuple[int, int]:
        return errno.ENOMEM, 0

    monkeypatch.setattr(requests, "error_of", no_memory)
    inside = namespace("q")
    refused = pytest.raises(ShortageError, match="cannot be bound: Cannot allocate memory")
    with bound(inside), inside.entered(), refused:  # the kernel refuses the second one
        QueueReader(QUEUE)


def test_privilege_is_named() -> None:
    code = (
        "from nfq_guard.nfqueue.reader import QueueReader\n"
        "from nfq_guard.errors import PrivilegeError\n"
        "try: QueueReader(7)\n"
        "except PrivilegeError as error: print(error)\n"
    )
    done = subprocess.run(
        [
            "setpriv",
            "--bounding-set=-net_admin",
            "--inh-caps=-net_admin",
            sys.executable,
            "-c",
            code,
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": import_path()},
    )
    assert "CAP_NET_ADMIN" in done.stdout


def test_a_name_of_an_interface_is_text(namespace: Make) -> None:
    """A name may contain any bytes, and must not break the log."""
    inside = namespace("q")
    queue_udp(inside)
    name = os.fsdecode(b"l\xff")
    inside.ip("link", "set", "lo", "down")
    inside.ip("link", "set", "lo", "name", name)
    inside.ip("link", "set", name, "up")
    with Datagrams(inside) as udp, bound(inside) as (reader, _):
        udp.send(1)
        _, (queued,) = reader.drain(10)
        assert queued.outdev == "l\\xff"


def test_more_queues_than_a_page_of_the_kernel_s_file_has(namespace: Make) -> None:
    numbers = range(1000, 1100)
    with namespace("q").entered(), ExitStack() as stack:
        for number in numbers:
            stack.enter_context(QueueReader(number, queue_length=1, socket_buffer_bytes=4096))
        assert sorted(counters.all_queues()) == list(numbers)
