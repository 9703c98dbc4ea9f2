# SPDX-License-Identifier: MIT
"""Runs the containers of the manifests, with their root, volumes and capabilities.

There is no cluster: `tests/support/pod.py` describes the replacement. Where this kernel or the
tests differ from a node, the configuration is changed below.
"""

import copy
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from nfq_guard import capabilities
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.pace import limit
from tests.support.cni import write
from tests.support.kustomize import KUBERNETES, build, by_identity
from tests.support.live import LiveConntrack
from tests.support.pod import Pod, update
from tests.support.queue import wait_for
from tests.support.trace import PLACES, Ends, parse

pytestmark = pytest.mark.kernel

_TREE: Final = Path(__file__).parents[2]
_HEALTH: Final = "http://127.0.0.1:9477/healthz"
# The last one is INVALID, and the flow is translated.
_ESCAPES: Final = ("> S 0:0(0) win 65535", "> . 1:1(0) ack 1")
_ENDS: Final = Ends(ports=(2000, 8080))
_SERVICE: Final = "-t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.77.7.7"
# The kernel of the tests may lack the statement `queue` of nftables, and a test does not wait long.
_CHANGES: Final = {
    'backend = "nftables"': 'backend = "nft"',
    "follow_files_s = 10": "follow_files_s = 0.2",
}


def adapted(text: str) -> str:
    for old, new in _CHANGES.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@contextmanager
def pod_of(
    overlay: str,
    identity: tuple[str, str],
    place: Path,
    **image: Any,  # noqa: ANN401 - of `Pod`
) -> Iterator[tuple[Pod, dict[str, Any], dict[str, dict[str, str]]]]:
    """The pod of an object, its specification, and the ConfigMaps of its kustomization."""
    objects = by_identity(build(KUBERNETES / "overlays" / overlay))
    spec = copy.deepcopy(objects[identity]["spec"]["template"]["spec"])
    maps = {
        name: {file: adapted(text) for file, text in each["data"].items()}
        for (kind, name), each in objects.items()
        if kind == "ConfigMap"
    }
    if not image:
        programs = Path(sys.executable).parent
        # The interpreter of the environment of the tests may be outside of its root's file system.
        base = Path(sys.base_prefix)
        image = {
            "shared": sorted({_TREE, base}),
            "path": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
        }
    with Pod(spec, maps, place, **image) as pod:
        yield pod, spec, maps


@contextmanager
def running(
    pod: Pod, space: Namespace, container: dict[str, Any], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A container that runs until the end of the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(space.argv(pod.argv(container)), stdout=out, stderr=out)
    try:
        wait_for(lambda: process.poll() is not None or bool(events(log, "started")))
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        process.wait(timeout=limit(30))


def events(log: Path, name: str) -> list[dict[str, Any]]:
    lines = [line for line in log.read_bytes().splitlines() if line.endswith(b"}")]
    return [event for event in map(json.loads, lines) if event["event"] == name]


def healthy(space: Namespace) -> bool:
    with space.entered(), urllib.request.urlopen(_HEALTH, timeout=60) as response:
        return bool(response.status == 200)


def sets(process: subprocess.Popen[bytes]) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    return dict(line.split(":\t", 1) for line in lines if "\t" in line)


def guard_a_node(place: Path, **image: Any) -> None:  # noqa: ANN401 - of `Pod`
    """From the init container to the end of the pod, with a packet in between."""
    log = place / "log"
    volumes = place / "volumes"
    volumes.mkdir()
    daemon_set = ("DaemonSet", "nfq-guard-enforce")
    with (
        LiveConntrack(DEFAULT_SYSCTLS) as live,
        pod_of("kube-proxy", daemon_set, volumes, **image) as (pod, spec, maps),
    ):
        (prepare,) = spec["initContainers"]
        (daemon,) = spec["containers"]
        words = prepare["command"][2].removesuffix(" || true").split()
        for name in prepare["securityContext"]["capabilities"]["add"]:
            refused = pod.run(live.space, prepare, *words, without=name)
            assert refused.returncode != 0, f"{name} is not needed"
        done = pod.run(live.space, prepare)
        assert "1 of the BPF program" in done.stdout, done.stderr
        write(pod.volumes["pods"], "client-0", "10.1.0.1/24")
        (pod.volumes["pods"] / "cbr0-left-behind-eth0").touch()
        with running(pod, live.space, daemon, log) as process:
            assert healthy(live.space)
            # Says that the directory was read.
            wait_for(lambda: bool(events(log, "pods_unread")))
            (started,) = events(log, "started")
            assert (started["mode"], started["evidence"]) == ("enforce", "bpf")
            held = sets(process)
            assert int(held["CapEff"], 16) == int(held["CapPrm"], 16) == 1 << capabilities.NET_ADMIN
            assert held["NoNewPrivs"] == "1"
            live.space.run("iptables", *_SERVICE.split())
            for line in _ESCAPES:
                live.put(_ENDS.octets(parse(line, PLACES["plain"])))
            wait_for(lambda: bool(events(log, "packet_judged")))
            (judged,) = events(log, "packet_judged")
            assert (judged["nat"], judged["evidence"]) == ("dnat", "bpf")
            assert (judged["rule"], judged["verdict"]) == ("translated", "drop")
            assert (judged["src_pod"]["name"], "dst_pod" in judged) == ("client-0", False)

            fresh = maps["nfq-guard"]["nfq-guard.toml"].replace("preset:default", "preset:observe")
            update(pod.volumes["config"], {"nfq-guard.toml": fresh})
            wait_for(lambda: bool(events(log, "reloaded")))
            wait_for((pod.volumes["state"] / "last-good.json").exists)

            assert "NFQUEUE" in live.space.run("iptables-nft-save", "-t", "mangle").stdout
            ended = pod.run(live.space, daemon, *daemon["lifecycle"]["preStop"]["exec"]["command"])
            assert ended.returncode == 0, ended.stderr
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=limit(30)) == 0, log.read_text()
            assert "NFQUEUE" not in live.space.run("iptables-nft-save", "-t", "mangle").stdout


def test_a_node(tmp_path: Path) -> None:
    guard_a_node(tmp_path)


def test_a_pod_with_a_sidecar(tmp_path: Path, namespace: Callable[[str], Namespace]) -> None:
    space = namespace("sidecar")
    (tmp_path / "volumes").mkdir()
    cart = ("Deployment", "cart")
    with pod_of("istio-example", cart, tmp_path / "volumes") as (pod, spec, _):
        (sidecar,) = spec["initContainers"]
        with running(pod, space, sidecar, tmp_path / "log") as process:
            assert healthy(space)
            (started,) = events(tmp_path / "log", "started")
            assert (started["mode"], started["evidence"]) == ("dry-run", "ctnetlink")
            assert int(sets(process)["CapBnd"], 16) == 1 << capabilities.NET_ADMIN
