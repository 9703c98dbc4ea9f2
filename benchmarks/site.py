# SPDX-License-Identifier: MIT
"""The benchmark's network: a client and a server with a router between them.

The router tracks connections. Any number of flows are opened by sending the segments of both sides
from the two ends; no socket belongs to them, so no host answers, and arriving packets are only
counted.
"""

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

from benchmarks import frames, machine
from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.nfqueue.counters import QueueCounters, parse

REPO: Final = Path(__file__).resolve().parent.parent
BUILD: Final = REPO / "build" / "bench"

CLIENT: Final = "10.77.0.2"
ROUTER: Final = "10.77.0.1"
ROUTER_OUTSIDE: Final = "10.78.0.1"
SERVER: Final = "10.78.0.2"
# Addresses of flows without sockets: plain ones, and ones that the router translates.
_PLAIN: Final = frames.address("10.200.0.0")
_TRANSLATED: Final = "10.201.0.0/16"
_FAR: Final = frames.address("10.210.0.1")
FAR_PORT: Final = 8080
HOSTS: Final = 250
_FIRST_PORT: Final = 10_000
_ISN: Final = 1000
# For one run of the generator; the longest takes some seconds.
_LIMIT_S: Final = 30
_WINDOW: Final = 65535
INVALID: Final = ("-m", "conntrack", "--ctstate", "INVALID")


class Run(NamedTuple):
    """The result of one run of the generator.

    Attributes:
        sent: Packets.
        seconds: From the first to the last.
        cpu_s: CPU time of the generator, including the kernel's work on its packets up to the
            queue, or to where they are dropped.
    """

    sent: int
    seconds: float
    cpu_s: float


class Site:
    """The three namespaces; removed at the end of `with`."""

    def __enter__(self) -> Self:
        """Create the namespaces."""
        with ExitStack() as stack:
            self.client = stack.enter_context(Namespace("client"))
            self.router = stack.enter_context(Namespace("router"))
            self.server = stack.enter_context(Namespace("server"))
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nfqg-")))
            self._processes: list[subprocess.Popen[str]] = []
            self._complaints: dict[int, Path] = {}
            stack.callback(self.end_all)
            self._wire()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _wire(self) -> None:
        for key, value in (("all.rp_filter", 0), ("default.rp_filter", 0), ("ip_forward", 1)):
            place = "ipv4.conf." if key.endswith("filter") else "ipv4."
            self.router.sysctl(place + key, value)
        veth(self.router, "inside", self.client, "eth0", (f"{ROUTER}/24", f"{CLIENT}/24"))
        veth(self.router, "outside", self.server, "eth0", (f"{ROUTER_OUTSIDE}/24", f"{SERVER}/24"))
        self.client.ip("route", "add", "default", "via", ROUTER)
        self.server.ip("route", "add", "default", "via", ROUTER_OUTSIDE)
        self.router.ip("route", "add", "10.200.0.0/15", "via", CLIENT)
        self.router.ip("route", "add", "10.210.0.0/16", "via", SERVER)
        self.from_client = frames.Link(mac(self.client, "eth0"), mac(self.router, "inside"))
        self.from_server = frames.Link(mac(self.server, "eth0"), mac(self.router, "outside"))
        # Permanent neighbour entries, so that no measurement includes ARP.
        for near, address, device, link in (
            (self.client, ROUTER, "eth0", self.from_client.target),
            (self.server, ROUTER_OUTSIDE, "eth0", self.from_server.target),
            (self.router, CLIENT, "inside", self.from_client.source),
            (self.router, SERVER, "outside", self.from_server.source),
        ):
            near.ip("neigh", "replace", address, "lladdr", link.hex(":"), "dev", device,
                    "nud", "permanent")  # fmt: skip

    def iptables(self, *words: str) -> str:
        """Run iptables in the router; returns its output."""
        return self.router.run("iptables", "-w", *words).stdout

    def counted(self, table: str, chain: str) -> int:
        """Packets that the first rule of a chain has matched."""
        listing = self.iptables("-t", table, "-nvxL", chain).splitlines()
        return int(listing[2].split()[0])

    def start(self, namespace: Namespace, *words: str) -> subprocess.Popen[str]:
        """Start a program inside; it is stopped with the site at the latest."""
        # A file, because a full pipe without a reader would block the program.
        path = self.directory / f"stderr-{len(self._complaints)}"
        with path.open("w", encoding="utf-8") as complaints:
            process = namespace.popen(*words, stdout=subprocess.DEVNULL, stderr=complaints)
        self._processes.append(process)
        self._complaints[process.pid] = path
        return process

    def complaints(self, process: subprocess.Popen[str]) -> str:
        """The standard error so far of a program that `start` started."""
        return self._complaints[process.pid].read_text(encoding="utf-8").strip()

    def await_word(self, process: subprocess.Popen[str], word: str) -> None:
        """Wait until a program has written `word`.

        Raises:
            RuntimeError: It ended or timed out first.
        """
        deadline = time.monotonic() + _LIMIT_S
        while word not in self.complaints(process):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!s}: {self.complaints(process)}")
            time.sleep(0.005)

    def end(self, process: subprocess.Popen[str]) -> None:
        """Stop a program that `start` started."""
        if process in self._processes:
            self._processes.remove(process)
        _end(process)

    def end_all(self) -> None:
        """Stop every program that `start` started."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            _end(process)
        self._processes.clear()

    def generate(
        self,
        namespace: Namespace,
        path: Path,
        count: int,
        *,
        pps: float = 0,
        stamp: bool = False,
        backlog: tuple[int, int, int] | None = None,
        cpu: int | None = None,
    ) -> Run:
        """Send frames on `eth0` of a namespace and wait until all are sent.

        Args:
            namespace: The sender.
            path: File of the frames.
            count: The number of packets.
            pps: Packets a second; 0 for as fast as possible.
            stamp: Whether each packet carries its time of sending.
            backlog: Instead of a rate: the id of a process in the router, and the lower and upper
                bound of the packets that wait in its queues.
            cpu: The CPU of the generator, which also does the router's work on the packets.
        """
        words = [str(BUILD / "generate"), "eth0", str(path), str(count), str(pps)]
        if stamp:
            words.append("stamp")
        if backlog is not None:
            pid, low, high = backlog
            table = f"/proc/{pid}/net/netfilter/nfnetlink_queue"
            words += ["backlog", table, str(low), str(high)]
        process = namespace.popen(*words)
        if cpu is not None:
            machine.pin(process.pid, cpu)
        try:
            out, problem = process.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{count} packets were not accepted within {_LIMIT_S} s") from None
        finally:
            _end(process)
        if process.returncode:
            raise RuntimeError(f"generate: {problem}")
        sent, seconds, used, _ = out.split()
        return Run(int(sent), float(seconds), float(used))

    @contextmanager
    def flood(self, namespace: Namespace, path: Path, pps: int) -> Iterator[None]:
        """Send frames on `eth0` of a namespace repeatedly; none at 0 a second."""
        if not pps:
            yield
            return
        process = self.start(namespace, str(BUILD / "generate"), "eth0", str(path), "0", str(pps))
        try:
            yield
            if process.poll() is not None:
                raise RuntimeError(f"generate ended early, with status {process.returncode}")
        finally:
            self.end(process)

    def open_flows(self, count: int, *, translated: bool = False) -> None:
        """Let the router see the handshakes of flows 0 to `count` - 1."""
        source = self.directory / "handshake"
        for link, namespace, reply, seq, ack, flags in (
            (self.from_client, self.client, False, _ISN, 0, frames.SYN),
            (self.from_server, self.server, True, _ISN, _ISN + 1, frames.SYN | frames.ACK),
            (self.from_client, self.client, False, _ISN + 1, _ISN + 1, frames.ACK),
        ):
            sent = frames.write(
                source,
                (
                    frames.segment(link, *_ends(one, translated, reply), seq, ack, flags)
                    for one in range(count)
                ),
            )
            # A rate that the backlog of the receiving interface can absorb.
            self.generate(namespace, source, sent, pps=200_000)
        source.unlink()

    def seq_over(
        self, count: int, *, translated: bool = False, payload: int = 0, stride: int = 1
    ) -> Path:
        """Frames far beyond the window of flows 0, `stride`, ...: `count` of them.

        Those of plain flows are sent by the client, those of translated ones by the server to the
        router's own address, as in the case in which connections are reset.
        """
        link = self.from_server if translated else self.from_client
        path = self.directory / f"seq-over-{translated}-{count}-{payload}-{stride}"
        if not path.exists():
            frames.write(
                path,
                (
                    frames.segment(
                        link,
                        *_ends(one * stride, translated, translated),
                        _ISN + 1 + 4 * _WINDOW,
                        _ISN + 1,
                        frames.ACK | frames.PSH,
                        payload=bytes(payload),
                    )
                    for one in range(count)
                ),
            )
        return path

    def translate(self, sources: str = _TRANSLATED) -> None:
        """Have the router translate the flows that are opened as translated, or other ones."""
        self.iptables("-t", "nat", "-A", "POSTROUTING", "-s", sources, "-o", "outside",
                      "-j", "SNAT", "--to-source", ROUTER_OUTSIDE)  # fmt: skip


def _ends(
    one: int,
    translated: bool,  # noqa: FBT001 - a table of cases reads best positionally
    reply: bool,  # noqa: FBT001 - as above
) -> tuple[int, int, int, int]:
    """Source, destination and ports of a flow's packet, as on the wire where it is sent.

    Plain flows come from many hosts, so that queues can be balanced by address; translated ones
    from one, so that each keeps its port.
    """
    if translated:
        near = frames.address(ROUTER_OUTSIDE if reply else "10.201.0.1")
        near_port = _FIRST_PORT + one
    else:
        port, host = divmod(one, HOSTS)
        near = _PLAIN + 1 + host
        near_port = _FIRST_PORT + port
    return (_FAR, near, FAR_PORT, near_port) if reply else (near, _FAR, near_port, FAR_PORT)


def mac(namespace: Namespace, device: str) -> bytes:
    """Hardware address of a device."""
    shown = namespace.run("ip", "-o", "link", "show", device).stdout
    found = re.search(r"link/ether ([0-9a-f:]{17})", shown)
    if found is None:
        raise RuntimeError(f"{device} has no hardware address: {shown}")
    return bytes.fromhex(found[1].replace(":", ""))


def queues(pid: int) -> dict[int, QueueCounters]:
    """The kernel's counters of every queue in the network namespace of a process, by number."""
    table = Path(f"/proc/{pid}/net/netfilter/nfnetlink_queue")
    return parse(table.read_text(encoding="ascii"))


def lost(pid: int) -> int:
    """Packets that the queues there dropped because they, or their readers' buffers, were full."""
    return sum(queue.queue_dropped + queue.user_dropped for queue in queues(pid).values())


def queued(pid: int) -> int:
    """Packets that the queues have accepted; those that found no room do not count."""
    return sum(queue.last_id for queue in queues(pid).values())


def wait_until_drained(pid: int, limit_s: float = 30) -> None:
    """Wait until no packet waits in any queue of the process's namespace.

    Raises:
        TimeoutError: Some still do after `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    while any(queue.waiting for queue in queues(pid).values()):
        if time.monotonic() > deadline:
            raise TimeoutError("packets wait in the queue without a verdict")
        time.sleep(0.002)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
