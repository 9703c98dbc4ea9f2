# SPDX-License-Identifier: MIT
"""The pods of this node by address, from the files that the container runtime keeps.

containerd and CRI-O connect pods through libcni. For each interface that it created, libcni keeps a
file `/var/lib/cni/results/<network>-<container id>-<interface>` until the pod is deleted: a JSON
object of the kind `cniCacheV1` (containernetworking/cni, libcni/api.go).

Files are read in threads of the loop, and read again only if the directory or a file has changed.
Unusable files are skipped, and reported at most once a minute. Runtimes leave files behind, so
there may be many more files than pods: each bound below keeps the newest.
"""

import heapq
import ipaddress
import math
import os
import re
import stat
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, final

import msgspec

from nfq_guard.service.loop import Loop
from nfq_guard.service.ruleset_pace import cpu_time, pause_s
from nfq_guard.telemetry.events import Event, Pod, PodsUnread, exception_texts

_KIND: Final = "cniCacheV1"
# Files of the loopback interface, which every pod has, and which contain no address of the pod.
_LOOPBACK: Final = "-lo"
NAMES_MAX: Final = 16_384
FILES_MAX: Final = 4096
FILE_BYTES_MAX: Final = 65_536
FILE_ADDRESSES_MAX: Final = 16
ADDRESSES_MAX: Final = 8192
# Names of Kubernetes (RFC 1123), and container ids (the CNI specification).
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_CONTAINER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SAID_S: Final = 60.0
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Pods: TypeAlias = Mapping[bytes, Pod]
"""Pods by the octets of an address."""
# Inode, times of change of content and of status, size.
_Stamp: TypeAlias = tuple[int, int, int, int]


class _Ip(msgspec.Struct):
    address: str


class _Result(msgspec.Struct):
    ips: list[_Ip] | None = None


class _Cached(msgspec.Struct, rename="camel"):
    kind: str = ""
    container_id: str = ""
    cni_args: list[tuple[str, str]] | None = None
    result: _Result | None = None


_decode: Final = msgspec.json.Decoder(_Cached).decode


class _File(NamedTuple):
    """The contents of one file.

    Attributes:
        stamp: Changes with the file.
        addresses: Addresses of the pod.
        pod: The pod; None for a file without a pod, and for a skipped file.
        problem: Why the file is skipped; empty if it is not.
    """

    stamp: _Stamp
    addresses: tuple[bytes, ...]
    pod: Pod | None
    problem: str


class PodReading(NamedTuple):
    """The contents of a directory.

    Attributes:
        pods: The pods.
        skipped: Number of files that are unusable or beyond a bound.
        problem: One of these files, with its problem; empty for none.
    """

    pods: Pods
    skipped: int
    problem: str


@final
class PodFiles:
    """Reads a directory of libcni's results; not thread-safe."""

    def __init__(self, directory: Path) -> None:
        """Read nothing before `read`."""
        self._directory = directory
        self._stamp: _Stamp | None = None
        self._files: dict[str, _File] = {}
        self._settled = False

    def read(self) -> PodReading | None:
        """The pods; None if nothing has changed since the last reading.

        Raises:
            OSError: The directory cannot be read. The next call reads everything again.
        """
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return self._read(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            self._stamp, self._files = None, {}
            raise

    def _read(self, directory: int) -> PodReading | None:
        stamp = _stamp(os.fstat(directory))
        same = stamp == self._stamp
        if same and self._settled:
            return None
        listed, beyond = _listed(directory)
        before, self._files = self._files, {}
        for name, status in listed:
            known = before.get(name)
            if known is None or known.stamp != _stamp(status):
                known = _file(directory, name, status)
            self._files[name] = known
        # libcni creates a file before it writes it, and the directory does not change a second
        # time.
        self._settled = same and all(before.get(name) is one for name, one in self._files.items())
        self._stamp = stamp
        return _reading(self._files, beyond)


def _listed(directory: int) -> tuple[list[tuple[str, os.stat_result]], int]:
    """The newest files, newest first, and the number of others."""
    found: list[tuple[str, os.stat_result]] = []
    beyond = 0
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= NAMES_MAX:
                beyond = 1  # the number of further files is unknown
                break
            if entry.name.endswith(_LOOPBACK):
                continue
            try:
                found.append((entry.name, entry.stat(follow_symlinks=False)))
            except FileNotFoundError:
                continue
    newest = heapq.nlargest(FILES_MAX, found, key=lambda one: (one[1].st_mtime_ns, one[0]))
    return newest, beyond + len(found) - len(newest)


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _file(directory: int, name: str, status: os.stat_result) -> _File:
    stamp = _stamp(status)
    try:
        if not stat.S_ISREG(status.st_mode):
            return _File(stamp, (), None, "not a regular file")
        addresses, pod = _parse(_content(directory, name))
    except OSError as error:
        return _File(stamp, (), None, error.strerror or str(error))
    except ValueError as error:
        return _File(stamp, (), None, str(error))
    return _File(stamp, addresses, pod, "")


def _content(directory: int, name: str) -> bytes:
    descriptor = os.open(name, _OPEN_FILE, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        content = os.read(descriptor, FILE_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"it has more than {FILE_BYTES_MAX} bytes")
    return content


def _parse(content: bytes) -> tuple[tuple[bytes, ...], Pod | None]:
    """The addresses of a pod, and the pod."""
    try:
        cached = _decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        cached = _Cached()
    if cached.kind != _KIND:
        raise ValueError(f"not JSON of the kind {_KIND}")
    given = dict(cached.cni_args or ())
    pod = Pod(
        given.get("K8S_POD_NAMESPACE", ""), given.get("K8S_POD_NAME", ""), cached.container_id
    )
    if not pod.namespace and not pod.name:
        return (), None  # a container without Kubernetes
    if not (_NAME.fullmatch(pod.namespace) and _NAME.fullmatch(pod.name)):
        raise ValueError("its pod has no valid Kubernetes name")
    if not _CONTAINER.fullmatch(pod.container):
        raise ValueError("its container has no id")
    texts = [one.address for one in (cached.result and cached.result.ips) or ()]
    if len(texts) > FILE_ADDRESSES_MAX:
        raise ValueError(f"it has more than {FILE_ADDRESSES_MAX} addresses")
    try:
        found = [ipaddress.ip_interface(text).ip for text in texts]
    except ValueError:
        raise ValueError("an address is invalid") from None
    # Several pods may share an address of another kind.
    own = (
        one.packed
        for one in found
        if not (one.is_loopback or one.is_link_local or one.is_multicast or one.is_unspecified)
    )
    return tuple(own), pod


def _reading(files: Mapping[str, _File], beyond: int) -> PodReading:
    """The pods of these files, newest first; an address belongs to the newest."""
    pods: dict[bytes, Pod] = {}
    skipped = beyond
    problem = f"there are more than {FILES_MAX} files" if beyond else ""
    for name, one in files.items():
        why = one.problem
        if one.pod is not None:
            if len(pods) + len(one.addresses) > ADDRESSES_MAX:
                why = f"there are more than {ADDRESSES_MAX} addresses"
            else:
                for address in one.addresses:
                    pods.setdefault(address, one.pod)
        if why:
            skipped += 1
            problem = problem or f"{name!a}: {why}"
    return PodReading(pods, skipped, problem)


@final
class PodFollower:
    """Reads the pods periodically, one reading at a time."""

    def __init__(
        self,
        read: Callable[[], PodReading | None],
        adopt: Callable[[Pods], None],
        say: Callable[[Event], None],
        gauges: MutableMapping[str, float],
        loop: Loop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read nothing before `begin`.

        Args:
            read: As `PodFiles.read`; called in a thread.
            adopt: Called with the pods of each reading.
            say: Logs an event.
            gauges: Get `pods_dir_read`, `pod_addresses` and `pod_files_skipped`.
            loop: Runs the readings in its threads.
            clock: Monotonic seconds.
        """
        self._read = read
        self._adopt = adopt
        self._say = say
        self._gauges = gauges
        self._loop = loop
        self._clock = clock
        self._cpu_s = 0.0
        self._begun_at = 0.0
        self._problem = ""
        self._skipped = 0
        self._said = ""
        self._say_at = -math.inf

    def begin(self, _now: float = 0.0) -> None:
        """Start a reading; the next one follows after a pause."""
        self._begun_at = self._clock()
        self._loop.background(self._timed, self._taken, self._failed)

    def _timed(self) -> PodReading | None:
        """In a thread."""
        begun = cpu_time()
        try:
            return self._read()
        finally:
            self._cpu_s = cpu_time() - begun

    def _taken(self, reading: PodReading | None) -> None:
        if reading is not None:
            self._adopt(reading.pods)
            self._problem, self._skipped = reading.problem, reading.skipped
            self._count(len(reading.pods), read=True)
        self._over()

    def _failed(self, error: Exception) -> None:
        """Forget all pods, because an address may belong to another pod by now."""
        self._adopt({})
        self._problem = str(error) if isinstance(error, OSError) else exception_texts(error)[0]
        self._skipped = 0
        self._count(0, read=False)
        self._over()

    def _count(self, addresses: int, *, read: bool) -> None:
        self._gauges["pods_dir_read"] = float(read)
        self._gauges["pod_addresses"] = addresses
        self._gauges["pod_files_skipped"] = self._skipped

    def _over(self) -> None:
        now = self._clock()
        if not self._problem:
            self._said = ""
        elif self._problem != self._said and now >= self._say_at:
            self._said = self._problem
            self._say_at = now + _SAID_S
            self._say(PodsUnread(problem=self._problem, files=self._skipped))
        self._loop.after(pause_s(self._cpu_s, now - self._begun_at), self.begin)
