# SPDX-License-Identifier: MIT
"""Every scenario has its expected outcome under every mitigation, on the running kernel."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.capture.reader import Capture
from nfq_guard.conntrack.kernel_rules import KERNELS, KernelRules
from nfq_guard.lab.outcome import ENFORCING, GUARDED, Mitigation, Outcome
from nfq_guard.lab.scenarios import SCENARIOS
from nfq_guard.lab.scenarios.base import RUNNING_KERNEL, Scenario
from nfq_guard.lab.strays import BEYOND_BYTES, PAYLOAD
from nfq_guard.lab.wiretap import read_segment

# One process measures the trials, once.
pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("matrix")]

Records = dict[tuple[str, str], dict[str, Any]]

# Without an entry the default policy does not know what a host translates.
LOST = {"private-source": Outcome.LEAKED, "pod-reset": Outcome.RESET}
# Translation both ways, and an ICMPv6 error.
IN_IPV6 = ["kube-proxy-dnat", "snat-reply", "path-mtu"]
WITHOUT_GUARD = [m for m in Mitigation if not m.value.startswith("guard")]


COMMAND = [sys.executable, "-m", "nfq_guard"]


def lab(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "lab", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def measure(mitigations: Iterable[Mitigation], *words: str) -> Records:
    done = lab("matrix", "--format", "json", *words, "--mitigation", *mitigations)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return {(record["scenario"], record["mitigation"]): record for record in records}


PLANTED = ("kube-proxy-dnat-guard-inner.pcap", "kube-proxy-dnat-guard.jsonl")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the runs' recordings, in which another user has planted links."""
    path = tmp_path_factory.mktemp("kept")
    for name in PLANTED:
        (path / name).symlink_to(path.with_name("victim"))
    return path


@pytest.mark.usefixtures("measured")
def test_planted_links_are_replaced(kept: Path) -> None:
    for name in PLANTED:
        assert (kept / name).stat().st_size
        assert not (kept / name).is_symlink()
    assert not kept.with_name("victim").exists()


@pytest.fixture(scope="module")
def measured(kept: Path) -> Records:
    """Every trial of IPv4. One process runs them: some wait while others work."""
    return measure(Mitigation, "--pcap", str(kept), "--events", str(kept))


@pytest.fixture(scope="module")
def plain(measured: Records) -> Records:
    return {key: record for key, record in measured.items() if key[1] in WITHOUT_GUARD}


@pytest.fixture(scope="module")
def guarded(measured: Records) -> Records:
    return {key: record for key, record in measured.items() if key[1] in GUARDED}


def test_every_outcome_is_the_expected_one(
    plain: Records,
) -> None:
    assert len(plain) == len(SCENARIOS) * len(WITHOUT_GUARD)
    for record in plain.values():
        assert record["outcome"] == record["expected"], record


@pytest.mark.parametrize("scenario", ["kube-proxy-dnat", "istio-redirect", "moby-hairpin"])
def test_without_mitigation_the_connection_is_reset(plain: Records, scenario: str) -> None:
    """The kernel calls the stray INVALID, a host answers with RST, and the connection dies."""
    record = plain[scenario, "none"]
    assert record["outcome"] == "reset"
    assert record["invalid"] == 2  # the stray and the RST that it provokes
    assert record["rst"]


def test_an_untranslated_reply_leaks_to_the_outer_link(
    plain: Records,
) -> None:
    assert all(leak.startswith("10.244.0.2:") for leak in plain["kube-proxy-dnat", "none"]["leaks"])
    assert plain["kube-proxy-dnat", "none"]["leaks"]
    assert not plain["kube-proxy-dnat", "drop-prerouting"]["leaks"]


def test_old_segment_is_not_invalid_on_this_kernel(
    plain: Records,
) -> None:
    if not RUNNING_KERNEL.old_segments_pass:
        pytest.skip("this kernel is older than 6.1")
    for mitigation in WITHOUT_GUARD:
        assert plain["late-retransmission", mitigation]["invalid"] == 0


@pytest.mark.parametrize("mitigation", [m for m in WITHOUT_GUARD if m is not Mitigation.NONE])
def test_every_blunt_mitigation_fails_somewhere(plain: Records, mitigation: Mitigation) -> None:
    outcomes = {plain[scenario, mitigation]["outcome"] for scenario in SCENARIOS}
    assert outcomes - {"survived"}


def test_every_connection_survives_with_the_guard_but_without_an_entry(guarded: Records) -> None:
    for scenario, mitigation in itertools.product(SCENARIOS, ENFORCING):
        record = guarded[scenario, mitigation]
        assert record["outcome"] == record["expected"], record
        outcome = LOST.get(scenario, Outcome.SURVIVED)
        assert record["outcome"] == outcome
        assert bool(record["leaks"]) == (outcome is Outcome.LEAKED)
        assert record["would_drop"] == 0
        assert record["queued"] == record["invalid"]
    assert guarded["path-mtu", "guard"]["invalid"] > 0


def test_the_guard_drops_packets_of_translated_flows_only(guarded: Records) -> None:
    dropped = {scenario: guarded[scenario, "guard"]["dropped"] for scenario in SCENARIOS}
    assert dropped["kube-proxy-dnat"] == dropped["moby-hairpin"] == 1
    assert dropped["istio-redirect"] == dropped["snat-reply"] == 2
    assert dropped["failover"] == 1
    for scenario in ("asymmetric", "private-source", "pod-reset", "path-mtu"):
        assert dropped[scenario] == 0
    # Conntrack translates an error about a translated flow: nothing of it is INVALID.
    assert guarded["service-path-mtu", "guard"]["queued"] == 0
    assert guarded["asymmetric", "guard"]["queued"] > 3


def test_dry_run_drops_nothing(guarded: Records) -> None:
    for scenario in SCENARIOS:
        record = guarded[scenario, "guard-dry-run"]
        assert record["outcome"] == record["expected"], record
        assert record["dropped"] == 0
        assert bool(record["would_drop"]) == bool(guarded[scenario, "guard"]["dropped"])


def test_event_and_capture_agree_on_the_segment(guarded: Records, kept: Path) -> None:
    """The event has the numbers of the segment captured on the link."""
    assert guarded
    log = (kept / "kube-proxy-dnat-guard.jsonl").read_text(encoding="utf-8")
    events = [json.loads(line) for line in log.splitlines()]
    (event,) = [event for event in events if event["event"] == "packet_judged"]
    with closing(Capture(str(kept / "kube-proxy-dnat-guard-inner.pcap"))) as capture:
        octets = [frame.octets for batch in capture.batches() for frame in batch]
    (stray,) = [packet for packet in octets if packet.endswith(PAYLOAD)]
    segment = read_segment(stray, time_ns=0, link="")
    assert segment is not None
    assert event["reason"] == "seq-over"
    assert event["nat"] == "dnat"
    assert (event["seq"], event["ack"]) == (segment.seq, segment.ack)
    if event["breach"]:
        assert event["breach"]["actual"] == segment.seq
        assert event["breach"]["distance"] > BEYOND_BYTES


def replay(capture: Path, kernel: str) -> list[dict[str, Any]]:
    """The packets of a capture that are INVALID under the rules of `kernel`."""
    done = subprocess.run(
        [*COMMAND, "replay", str(capture), "--kernel", kernel, "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_older_kernels_call_the_late_retransmission_invalid(plain: Records, kept: Path) -> None:
    assert plain
    capture = kept / "late-retransmission-none-inner.pcap"
    assert [packet["reason"] for packet in replay(capture, "5.10")] == ["seq-under"]
    assert replay(capture, "6.1") == []


def test_replay_of_the_capture_finds_the_same_breach(guarded: Records, kept: Path) -> None:
    """The kernel's window equals the one computed from the packets."""
    assert guarded
    (judged,) = [
        event
        for line in (kept / "kube-proxy-dnat-guard.jsonl").read_text("utf-8").splitlines()
        if (event := json.loads(line))["event"] == "packet_judged"
    ]
    (replayed,) = replay(kept / "kube-proxy-dnat-guard-inner.pcap", "6.1")
    assert replayed["reason"] == judged["reason"] == "seq-over"
    if judged["evidence"] == "bpf":
        assert replayed["breach"] == judged["breach"]


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> tuple[Records, Path]:
    """A few trials of IPv6 and their recordings; `make lab-matrix` runs all."""
    kept = tmp_path_factory.mktemp("six")
    words = ("--family", "6", "--scenario", *IN_IPV6, "--pcap", str(kept), "--events", str(kept))
    return measure((Mitigation.NONE, Mitigation.GUARD), *words), kept


def test_every_outcome_of_ipv6_is_the_expected_one(six: tuple[Records, Path]) -> None:
    records, _ = six
    assert len(records) == 2 * len(IN_IPV6)
    for record in records.values():
        assert record["outcome"] == record["expected"], record
        assert record["family"] == 6
    assert all(records[scenario, "guard"]["queued"] for scenario in IN_IPV6)
    assert all(leak.startswith("[fd00:244::2]:") for leak in records[IN_IPV6[0], "none"]["leaks"])


def test_event_and_capture_of_ipv6_agree(six: tuple[Records, Path]) -> None:
    """As in IPv4: the numbers of the event, of the capture, and of its replay."""
    _, kept = six
    name = "kube-proxy-dnat-guard-ipv6"
    log = (kept / f"{name}.jsonl").read_text("utf-8").splitlines()
    (event,) = [one for line in log if (one := json.loads(line))["event"] == "packet_judged"]
    (replayed,) = replay(kept / f"{name}-inner.pcap", "6.1")
    assert (event["family"], event["nat"], event["src"]) == (6, "dnat", "fd00:244::2")
    assert event["reason"] == replayed["reason"] == "seq-over"
    if event["evidence"] == "bpf":
        assert event["breach"] == replayed["breach"]


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=str)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_expectations_are_total_and_the_guard_saves_what_has_an_entry(
    scenario: Scenario, kernel: KernelRules
) -> None:
    expected = scenario.expected(kernel)
    assert set(expected) == set(Mitigation)
    if scenario.name != "broken-window-tracking" or kernel.old_segments_pass:
        outcome = LOST.get(scenario.name, Outcome.SURVIVED)
        assert {expected[each].outcome for each in ENFORCING} == {outcome}
    assert expected[Mitigation.GUARD_DRY_RUN].outcome is expected[Mitigation.NONE].outcome
    assert all(each.why for each in expected.values())
