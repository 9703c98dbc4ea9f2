# SPDX-License-Identifier: MIT
"""Pods by address, from files that libcni writes under containerd and CRI-O."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.lab.pace import limit
from nfq_guard.service.loop import Loop
from nfq_guard.service.worker import pods
from nfq_guard.service.worker.pods import PodFiles, PodFollower, PodReading, Pods
from nfq_guard.telemetry.events import Event, Pod, PodsUnread
from tests.support.cni import cached, write

CART = Pod("shop", "cart-0", "c" * 64)


def tick(place: Path) -> None:
    """Wait for the next tick of the file system's clock, every few milliseconds."""
    probe = place.with_name("probe")
    before = place.stat().st_ctime_ns
    while True:
        probe.touch()
        if probe.stat().st_ctime_ns > before:
            return


def named(found: PodReading | None) -> dict[str, str]:
    assert found is not None
    return {str(ip_address(key)): pod.name for key, pod in found.pods.items()}


def read(place: Path) -> PodReading:
    found = PodFiles(place).read()
    assert found is not None
    return found


def test_a_pod_has_each_of_its_addresses(tmp_path: Path) -> None:
    write(tmp_path, "cart-0", "10.244.0.5/24", "fd00::5/64", container="c" * 64)
    write(tmp_path, "cart-0", "127.0.0.1/8", "::1/128", interface="lo")
    # CRI-O has left thousands of these behind.
    (tmp_path / "cni-loopback-left-behind-lo").touch()
    found = read(tmp_path)
    assert found.pods == dict.fromkeys(
        (ip_address("10.244.0.5").packed, ip_address("fd00::5").packed), CART
    )
    assert (found.skipped, found.problem) == (0, "")


def test_addresses_that_are_not_of_one_pod_name_none(tmp_path: Path) -> None:
    write(tmp_path, "cart-0", "127.0.0.1/8", "fe80::1/64", "169.254.1.1/32", "0.0.0.0/0", "ff02::1")
    assert read(tmp_path) == PodReading({}, 0, "")


def test_what_is_no_pod_is_no_fault(tmp_path: Path) -> None:
    """Such as a container of podman, or an interface without an address."""
    no_pod = cached("cart-0", "10.0.0.1/8")
    del no_pod["cniArgs"]
    (tmp_path / "podman-a-eth0").write_text(json.dumps(no_pod))
    (tmp_path / "net-b-eth0").write_text(json.dumps(cached("cart-0") | {"result": {}}))
    (tmp_path / "net-c-eth0").write_text(json.dumps(cached("cart-0") | {"result": {"ips": None}}))
    assert read(tmp_path) == PodReading({}, 0, "")


def test_the_newest_file_has_the_address(tmp_path: Path) -> None:
    """Runtimes leave files of some pods behind, for example after a restart of the host."""
    for age, pod in ((5, "left-behind"), (1, "cart-0"), (9, "older")):
        file = write(tmp_path, pod, "10.244.0.5/24")
        os.utime(file, (time.time_ns() // 10**9 - age,) * 2)
    assert named(read(tmp_path)) == {"10.244.0.5": "cart-0"}


def test_changes_are_read_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "results"
    place.mkdir()
    files = PodFiles(place)
    assert named(files.read()) == {}
    one = write(place, "one", "10.0.0.1/24")
    assert named(files.read()) == {"10.0.0.1": "one"}
    # Files may be incomplete as long as the directory is new.
    assert named(files.read()) == {"10.0.0.1": "one"}
    assert files.read() is None
    tick(place)
    write(place, "two", "10.0.0.2/24")
    assert named(files.read()) == {"10.0.0.1": "one", "10.0.0.2": "two"}
    one.unlink()
    assert named(files.read()) == {"10.0.0.2": "two"}


def test_a_file_that_was_being_written_is_read_again(tmp_path: Path) -> None:
    """Its directory changes when it is created, not when it is complete."""
    files = PodFiles(tmp_path)
    half = tmp_path / "net-a-eth0"
    half.touch()
    first = files.read()
    assert first is not None
    assert (first.pods, first.skipped) == ({}, 1)
    half.write_text(json.dumps(cached("cart-0", "10.0.0.1/24")))
    assert named(files.read()) == {"10.0.0.1": "cart-0"}


def changed(**fields: Any) -> str:  # noqa: ANN401 - what JSON can hold
    return json.dumps(cached("cart-0", "10.0.0.9/24") | fields)


def of_pod(namespace: str, name: str) -> str:
    args = [["K8S_POD_NAMESPACE", namespace], ["K8S_POD_NAME", name]]
    return changed(cniArgs=args)


def with_addresses(*texts: Any) -> str:  # noqa: ANN401 - what JSON can hold
    return changed(result={"ips": [{"address": text} for text in texts]})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "not JSON of the kind"),
        ("no JSON", "not JSON of the kind"),
        ("[]", "not JSON of the kind"),
        ("null", "not JSON of the kind"),
        ("\0" * 4096, "not JSON of the kind"),
        ('{"kind": "\\ud800"}', "not JSON of the kind"),
        (b'{"kind": "cniCacheV1", "containerId": "\xff"}', "not JSON of the kind"),
        (changed(kind="cniCacheV2"), "not JSON of the kind"),
        (changed(cniArgs=[["K8S_POD_NAME"]]), "not JSON of the kind"),
        (changed(cniArgs={"K8S_POD_NAME": "x"}), "not JSON of the kind"),
        (changed(result=[1]), "not JSON of the kind"),
        (with_addresses(1), "not JSON of the kind"),
        (changed(padding="x" * pods.FILE_BYTES_MAX), "more than 65536 bytes"),
        (of_pod("shop", "cart\n0"), "no valid Kubernetes name"),
        (of_pod("shop", "\x1b[31mcart"), "no valid Kubernetes name"),
        (of_pod("shop", "cart-0\n"), "no valid Kubernetes name"),
        (of_pod("Shop", "cart-0"), "no valid Kubernetes name"),
        (of_pod("shop", "../cart"), "no valid Kubernetes name"),
        (of_pod("shop", "c" * 254), "no valid Kubernetes name"),
        (of_pod("shop", ""), "no valid Kubernetes name"),
        (changed(containerId=""), "no id"),
        (changed(containerId="a\x00"), "no id"),
        (changed(containerId="a" * 129), "no id"),
        (with_addresses("10.0.0.9/33"), "an address"),
        (with_addresses("10.0.0.9/" + "9" * 5000), "an address"),
        (with_addresses("x" * 10_000), "an address"),
        (with_addresses(""), "an address"),
        (with_addresses(*["10.0.0.9/24"] * 17), "more than 16 addresses"),
    ],
)
def test_a_file_that_cannot_be_used_is_skipped_alone(
    tmp_path: Path, content: str | bytes, problem: str
) -> None:
    write(tmp_path, "good", "10.0.0.1/24")
    octets = content.encode("utf-8") if isinstance(content, str) else content
    (tmp_path / "net-bad-eth0").write_bytes(octets)
    found = read(tmp_path)
    assert named(found) == {"10.0.0.1": "good"}
    assert found.skipped == 1
    assert found.problem.startswith("'net-bad-eth0': ")
    assert problem in found.problem


def test_a_file_of_any_depth_harms_nothing(tmp_path: Path) -> None:
    """Python 3.14 reads it, and older versions refuse it."""
    write(tmp_path, "good", "10.0.0.1/24")
    deep = '{"kind": "cniCacheV1", "config": ' + "[" * 30_000 + "]" * 30_000 + "}"
    (tmp_path / "net-deep-eth0").write_text(deep, encoding="ascii")
    found = read(tmp_path)
    assert named(found) == {"10.0.0.1": "good"}
    assert found.skipped == (sys.version_info < (3, 14))


def _link(path: Path) -> None:
    path.symlink_to(write(path.parent.parent, "elsewhere", "10.0.0.7/24"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, _link], ids=["fifo", "directory", "link"])
def test_what_is_no_regular_file_is_not_opened(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    place = tmp_path / "results"
    place.mkdir()
    write(place, "good", "10.0.0.1/24")
    make(place / "net-\udcff\n-eth0")
    found = read(place)
    assert named(found) == {"10.0.0.1": "good"}
    assert (found.skipped, found.problem) == (
        1, "'net-\\udcff\\n-eth0': not a regular file",
    )  # fmt: skip


@pytest.mark.parametrize("make", [os.mkfifo, _link], ids=["fifo", "link"])
def test_a_file_that_is_replaced_before_it_is_opened(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Opening a FIFO would wait for a writer, and a link may lead anywhere."""
    place = tmp_path / "results"
    place.mkdir()
    file = write(place, "cart-0", "10.0.0.1/24")
    status = file.stat()
    file.unlink()
    make(file)
    directory = os.open(place, os.O_RDONLY)
    try:
        found = pods._file(directory, file.name, status)
    finally:
        os.close(directory)
    assert (found.pod, bool(found.problem)) == (None, True)


def test_more_files_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest are read."""
    monkeypatch.setattr(pods, "FILES_MAX", 2)
    for number in range(4):
        file = write(tmp_path, f"pod-{number}", f"10.0.0.{number}/24")
        os.utime(file, (number, number))
    found = read(tmp_path)
    assert named(found) == {"10.0.0.3": "pod-3", "10.0.0.2": "pod-2"}
    assert (found.skipped, found.problem) == (2, "there are more than 2 files")


def test_more_names_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "NAMES_MAX", 3)
    for number in range(4):
        write(tmp_path, f"pod-{number}", f"10.0.0.{number}/24")
    found = read(tmp_path)
    assert (len(found.pods), found.skipped) == (3, 1)
    assert found.problem


def test_more_addresses_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "ADDRESSES_MAX", 3)
    for number in range(2):
        file = write(tmp_path, f"pod-{number}", f"10.0.{number}.1/24", f"10.0.{number}.2/24")
        os.utime(file, (number, number))
    found = read(tmp_path)
    assert named(found) == {"10.0.1.1": "pod-1", "10.0.1.2": "pod-1"}
    assert (found.skipped, "more than 3 addresses" in found.problem) == (1, True)


class Followed:
    """A follower of a directory, whose loop and clock are driven by the test."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.now = 1000.0
        self.adopted: list[Pods] = []
        self.said: list[Event] = []
        self.gauges: dict[str, float] = {}
        self.loop = Loop()
        self.error: Exception | None = None
        files = PodFiles(place)

        def read() -> PodReading | None:
            if self.error is not None:
                raise self.error
            return files.read()

        self.follower = PodFollower(
            read,
            self.adopted.append,
            self.said.append,
            self.gauges,
            self.loop,
            lambda: self.now,
        )

    def look(self) -> None:
        self.follower.begin()
        assert self.loop.run_until(lambda: not self.loop.busy, lambda: time.monotonic() + limit(60))

    def counts(self) -> tuple[float, ...]:
        """Whether the directory was read, and the number of addresses and of skipped files."""
        names = ("pods_dir_read", "pod_addresses", "pod_files_skipped")
        return tuple(self.gauges[name] for name in names)

    def problems(self) -> list[str]:
        """The problems logged since the last call."""
        events, self.said[:] = self.said[:], []
        return [event.problem for event in events if isinstance(event, PodsUnread)]


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Followed]:
    # The test starts each reading.
    monkeypatch.setattr(pods, "pause_s", lambda _cpu_s, _clock_s: 1e6)
    made = Followed(tmp_path / "results")
    yield made
    made.loop.close()


def test_a_missing_directory_is_said_once_and_tried_again(followed: Followed) -> None:
    for _ in range(3):
        followed.look()
        followed.now += 100
    (problem,) = followed.problems()
    assert str(followed.place) in problem
    followed.place.mkdir()
    write(followed.place, "cart-0", "10.0.0.1/24")
    followed.look()
    assert [next(iter(each.values())).name for each in followed.adopted if each] == ["cart-0"]
    # Its names may be those of other pods when it returns.
    followed.place.rename(followed.place.with_name("gone"))
    followed.look()
    assert followed.adopted[-1] == {}
    assert len(followed.problems()) == 1
    followed.place.with_name("gone").rename(followed.place)
    followed.look()
    assert followed.adopted[-1]


def test_what_was_read_is_counted(followed: Followed) -> None:
    followed.look()
    assert followed.counts() == (0, 0, 0)
    followed.place.mkdir()
    write(followed.place, "cart-0", "10.0.0.1/24", "fd00::1/64")
    (followed.place / "a").touch()
    for _ in range(3):  # nothing has changed in the last one
        followed.look()
        assert followed.counts() == (1, 2, 1)
    followed.place.rename(followed.place.with_name("gone"))
    followed.look()
    assert followed.counts() == (0, 0, 0)


def test_nothing_is_adopted_where_nothing_has_changed(followed: Followed) -> None:
    followed.place.mkdir()
    for _ in range(4):
        followed.look()
    assert followed.adopted == [{}, {}]


def test_problems_are_said_once_and_at_most_once_a_minute(followed: Followed) -> None:
    followed.place.mkdir()
    (followed.place / "a").touch()
    followed.look()
    followed.look()
    assert followed.said == [PodsUnread(problem="'a': not JSON of the kind cniCacheV1", files=1)]
    tick(followed.place)
    (followed.place / "b").touch()
    followed.now += 59
    for _ in range(4):
        followed.look()
    assert len(followed.said) == 1
    followed.now += 1
    followed.look()
    assert followed.said[1:] == [
        PodsUnread(problem="'b': not JSON of the kind cniCacheV1", files=2)
    ]


def test_a_bug_of_a_reading_does_not_end_it(followed: Followed) -> None:
    followed.place.mkdir()
    followed.error = KeyError("bug")
    followed.look()
    assert followed.problems() == ["KeyError: 'bug'"]
    followed.error = None
    followed.look()
    assert followed.adopted == [{}, {}]


def test_a_reading_follows_a_reading(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a reading that fails."""
    monkeypatch.setattr(pods, "pause_s", lambda _cpu_s, _clock_s: 0.0)
    until = time.monotonic() + limit(60)
    followed.follower.begin()
    assert followed.loop.run_until(lambda: len(followed.adopted) >= 2, lambda: until)
    followed.place.mkdir()
    write(followed.place, "cart-0", "10.0.0.1/24")
    assert followed.loop.run_until(lambda: bool(followed.adopted[-1]), lambda: until)
