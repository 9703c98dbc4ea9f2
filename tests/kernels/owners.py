# SPDX-License-Identifier: MIT
"""The real Docker, firewalld and ufw, with their own rules; run by name in the machine.

Each is the router of a lab scenario, in the machine's own network namespace, without the guard and
with it. firewalld drops INVALID packets in INPUT and FORWARD, ufw in INPUT, Docker nowhere: the
outcomes follow from that.
"""

import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.flow import IPV4
from nfq_guard.lab.addresses import PLANS, Plan
from nfq_guard.lab.netns import PREFIX, Namespace
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.pace import limit
from nfq_guard.lab.scenarios.base import (
    Link,
    MakeNamespace,
    Stage,
    join,
    routing,
    without_path_filter,
)
from nfq_guard.lab.strays import Kind, Stray
from nfq_guard.lab.trial import Keep, run
from nfq_guard.lab.wiretap import checksums_in_software

pytestmark = pytest.mark.timeout(limit(120))

_PLAN: Final = PLANS[IPV4]
_HOST: Final = _PLAN.outside.host(10)
_NEIGHBOUR: Final = _PLAN.outside.host(1)
_INSIDE: Final = _PLAN.lan.host(2)
_PORT: Final = 8080


class Situation(NamedTuple):
    """A connection through a program's rules, and the effect of a stray segment on it."""

    owner: str
    connection: str
    without: Outcome
    with_guard: Outcome


SITUATIONS: Final = (
    Situation(
        "Docker", "the host to its own published port", Outcome.RESET, Outcome.SURVIVED
    ),  # moby 1090
    Situation("Docker", "a neighbour to a published port", Outcome.RESET, Outcome.SURVIVED),
    Situation("Docker", "a container to a neighbour", Outcome.RESET, Outcome.SURVIVED),
    Situation("firewalld", "a masqueraded client", Outcome.SURVIVED, Outcome.SURVIVED),
    Situation("ufw", "a masqueraded client", Outcome.LEAKED, Outcome.SURVIVED),
)


class Adopted(Namespace):
    """The network namespace of a process, under a name that `close` removes."""

    def __init__(self, label: str, pid: int) -> None:
        self.name = f"{PREFIX}-{os.getpid()}-{label}"
        _run("ip", "netns", "attach", self.name, str(pid))


class _Scenario:
    """An existing stage, with the expectations of a situation."""

    summary = ""

    def __init__(self, situation: Situation, stage: Stage) -> None:
        self.name = f"{situation.owner}: {situation.connection}"
        self._situation = situation
        self._stage = stage

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        del make, plan
        return self._stage

    def expected(self, kernel: KernelRules) -> Expectations:
        del kernel
        return {
            Mitigation.NONE: Expectation(self._situation.without, ""),
            Mitigation.GUARD: Expectation(self._situation.with_guard, ""),
        }


def _run(*words: str) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout.strip()


def outcome_of(situation: Situation, stage: Stage, mitigation: Mitigation) -> Outcome:
    """What becomes of a connection of the stage."""
    scenario = _Scenario(situation, stage)
    return run(scenario, mitigation, keep=Keep(), cancelled=threading.Event()).outcome


def _hold(situation: Situation, stage: Stage) -> None:
    expected = {Mitigation.NONE: situation.without, Mitigation.GUARD: situation.with_guard}
    assert {each: outcome_of(situation, stage, each) for each in expected} == expected


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    """A host that does not forward yet: Docker denies in FORWARD only if it enables forwarding."""
    with Adopted("host", 1) as adopted:
        yield without_path_filter(adopted)


@pytest.fixture(scope="module")
def neighbour(host: Namespace) -> Iterator[Namespace]:
    """On the host's outer link."""
    with Namespace("neighbour") as outside:
        join(host, "wan0", outside, "eth0", _PLAN.outside, (10, 1))
        outside.ip("route", "add", "default", "via", _HOST)
        yield outside


@pytest.fixture(scope="module")
def inside(host: Namespace) -> Iterator[Namespace]:
    """On the host's inner link."""
    with Namespace("inside") as client:
        join(host, "lan0", client, "eth0", _PLAN.lan, (1, 2))
        client.ip("route", "add", "default", "via", "10.0.0.1")
        yield client


@pytest.fixture(scope="class")
def container(tmp_path_factory: pytest.TempPathFactory, host: Namespace) -> Iterator[Namespace]:
    """A container with a published port, whose image is a busybox."""
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    with tarfile.open(archive, "w") as image:
        image.add("/bin/busybox", "bin/busybox")
    _run("systemctl", "start", "docker")
    _run("docker", "import", str(archive), "box")
    words = ("--name", "web", "--publish", f"{_PORT}:80", "box", "/bin/busybox", "sleep", "1000000")
    _run("docker", "run", "--detach", *words)
    with Adopted("container", int(_run("docker", "inspect", "-f", "{{.State.Pid}}", "web"))) as box:
        checksums_in_software(box, "eth0")
        for port in Path("/sys/class/net/docker0/brif").iterdir():
            checksums_in_software(host, port.name)
        yield box
    _run("docker", "rm", "--force", "web")
    _run("systemctl", "stop", "docker.socket", "docker", "containerd")
    # The policy outlives Docker.
    _run("iptables", "-P", "FORWARD", "ACCEPT")


def _address(_container: Namespace) -> str:
    return _run("docker", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")


def _links(host: Namespace, inner: str) -> tuple[Link, ...]:
    return (
        Link(label="inner", namespace=host, interface=inner),
        Link(label="outer", namespace=host, interface="wan0"),
    )


def _outwards(host: Namespace, inner: str, client: Namespace, server: Namespace, own: str) -> Stage:
    """A client behind the host, its masquerade, and the two strays of the lab's `snat-reply`."""
    return Stage(
        router=host,
        client=client,
        server=server,
        connect_to=(_NEIGHBOUR, 443),
        listen_on=(_NEIGHBOUR, 443),
        nat="",
        links=_links(host, inner),
        strays=(
            Stray(kind=Kind.SEQ_OVER, sender=server, tap="outer", from_client=False),
            Stray(kind=Kind.STALE_RST, sender=client, tap="inner", from_client=True),
        ),
        outer="outer",
        hidden=((own, None),),
    )


def published(host: Namespace, client: Namespace, container: Namespace) -> Stage:
    """A connection of `client` to the port that Docker publishes for the container."""
    address = _address(container)
    return Stage(
        router=host,
        client=client,
        server=container,
        connect_to=(_HOST, _PORT),
        listen_on=(address, 80),
        nat="",
        links=_links(host, "docker0"),
        strays=(Stray(kind=Kind.SEQ_OVER, sender=container, tap="inner", from_client=False),),
        outer="outer",
        hidden=((address, None),),
    )


class TestDocker:
    def test_docker_host_to_its_own_published_port(
        self, host: Namespace, neighbour: Namespace, container: Namespace
    ) -> None:
        del neighbour
        _hold(SITUATIONS[0], published(host, host, container))

    def test_docker_neighbour_to_a_published_port(
        self, host: Namespace, neighbour: Namespace, container: Namespace
    ) -> None:
        _hold(SITUATIONS[1], published(host, neighbour, container))

    def test_docker_container_to_a_neighbour(
        self, host: Namespace, neighbour: Namespace, container: Namespace
    ) -> None:
        stage = _outwards(host, "docker0", container, neighbour, _address(container))
        _hold(SITUATIONS[2], stage)

    def test_doctor_names_the_chain_of_docker(self, container: Namespace) -> None:
        """Docker's policy for forwarded packets is DROP."""
        del container
        words = ("nfq-guard", "doctor", "--format", "json")
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(words, check=False, capture_output=True, text=True, env=clean)
        checks = [json.loads(line) for line in done.stdout.splitlines()]
        told = [check["what"] for check in checks if check["id"] == "fate.forward"]
        assert any("dropped by default" in what and "Docker" in what for what in told), done.stdout


@contextmanager
def _firewalld() -> Iterator[None]:
    _run("systemctl", "start", "firewalld")
    try:
        for words in (
            "--new-policy=outwards",
            "--policy=outwards --add-ingress-zone=internal",
            "--policy=outwards --add-egress-zone=external",
            "--policy=outwards --set-target=ACCEPT",
            "--zone=external --add-interface=wan0",
            "--zone=internal --add-interface=lan0",
        ):
            _run("firewall-cmd", "--permanent", *words.split())
        _run("firewall-cmd", "--reload")
        yield
    finally:
        _run("systemctl", "stop", "firewalld")


def test_firewalld(host: Namespace, neighbour: Namespace, inside: Namespace) -> None:
    with _firewalld():
        routing(host, _PLAN)
        _hold(SITUATIONS[3], _outwards(host, "lan0", inside, neighbour, _INSIDE))


_MASQUERADE: Final = "*nat\n:POSTROUTING - [0:0]\n-A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n"


@contextmanager
def _ufw() -> Iterator[None]:
    """Set up masquerading as in ufw's manual."""
    rules, defaults = Path("/etc/ufw/before.rules"), Path("/etc/default/ufw")
    rules.write_text(_MASQUERADE + rules.read_text(encoding="utf-8"), encoding="utf-8")
    text = defaults.read_text(encoding="utf-8")
    forward = 'DEFAULT_FORWARD_POLICY="DROP"'
    assert forward in text
    defaults.write_text(text.replace(forward, forward.replace("DROP", "ACCEPT")), encoding="utf-8")
    _run("ufw", "--force", "enable")
    try:
        yield
    finally:
        _run("ufw", "--force", "disable")


def test_ufw(host: Namespace, neighbour: Namespace, inside: Namespace) -> None:
    with _ufw():
        routing(host, _PLAN)
        _hold(SITUATIONS[4], _outwards(host, "lan0", inside, neighbour, _INSIDE))
