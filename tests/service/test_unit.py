# SPDX-License-Identifier: MIT
"""What the sandbox of the installed unit says about settings: a mistake, or none."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nfq_guard.firewall.xtables import Result
from nfq_guard.service.settings import Settings
from nfq_guard.service.unit import mistakes, only_from_here, sandbox_of

# As `systemctl show` tells it of the unit, with no drop-in.
SHIPPED = {
    "LoadState": "loaded",
    "IPAddressAllow": "",
    "IPAddressDeny": "::/0 0.0.0.0/0",
    "RestrictAddressFamilies": "AF_NETLINK AF_UNIX",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "ReadWritePaths": "",
    "RuntimeDirectory": "nfq-guard",
    "StateDirectory": "nfq-guard",
    "LogsDirectory": "nfq-guard",
}
METRICS = {"RestrictAddressFamilies": "AF_INET AF_INET6 AF_NETLINK AF_UNIX"}
HERE = METRICS | {"IPAddressAllow": "127.0.0.0/8 ::1/128"}
THERE = METRICS | {"IPAddressAllow": "10.0.0.0/8"}
LISTEN = "daemon.metrics_listen"
FILE = "daemon.metrics_file"


class Systemctl:
    """The program, with one unit."""

    def __init__(self, unit: str, properties: dict[str, str], *, installed: bool = True) -> None:
        self._unit = unit
        self._properties = properties
        self._installed = installed

    def find(self, program: str) -> bool:
        return self._installed and program == "systemctl"

    def run(self, argv: list[str], stdin: str) -> Result:
        assert (argv[:2], stdin) == (["systemctl", "show"], "")
        found = self._properties if argv[2] == self._unit else {"LoadState": "not-found"}
        return Result(0, "".join(f"{key}={value}\n" for key, value in found.items()), "")

    def capabilities(self) -> int:
        raise AssertionError

    def has_ipv6(self) -> bool:
        raise AssertionError

    def has_nft_table(self, name: str) -> bool:
        raise AssertionError(name)

    def has_legacy_mangle(self) -> bool:
        raise AssertionError

    def locked(self) -> AbstractContextManager[None]:
        raise AssertionError


def refused(properties: dict[str, str], **settings: str) -> list[str]:
    """The keys of the mistakes in settings of the main service."""
    systemctl = Systemctl("nfq-guard.service", SHIPPED | properties)
    sandbox = sandbox_of(Path("/etc/nfq-guard/nfq-guard.toml"), systemctl)
    assert sandbox is not None
    return [one.key for one in mistakes(Settings(**settings), sandbox)]  # type: ignore[arg-type] # settings of text


@pytest.mark.parametrize(
    ("properties", "address", "keys"),
    [
        ({}, "127.0.0.1:9477", [LISTEN]),
        (HERE, "127.0.0.1:9477", []),
        (HERE, "localhost:9477", []),
        (HERE, "[::1]:9477", []),
        (HERE, "0.0.0.0:9477", [LISTEN]),
        (HERE, "[2001:db8::1]:9477", [LISTEN]),
        (HERE, "router.example:9477", [LISTEN]),
        (THERE, "0.0.0.0:9477", []),
        (METRICS | {"IPAddressDeny": ""}, "0.0.0.0:9477", []),
        ({"RestrictAddressFamilies": "", "IPAddressDeny": ""}, "192.0.2.1:9477", []),
        ({"RestrictAddressFamilies": "AF_INET", "IPAddressDeny": ""}, "[::1]:9477", [LISTEN]),
    ],
)
def test_an_endpoint(properties: dict[str, str], address: str, keys: list[str]) -> None:
    assert refused(properties, metrics_listen=address) == keys


@pytest.mark.parametrize(
    ("properties", "file", "keys"),
    [
        ({}, "/var/lib/nfq-guard/guard.prom", []),
        ({}, "/var/log/nfq-guard/guard.prom", []),
        ({}, "/var/lib/node_exporter/guard.prom", [FILE]),
        ({}, "/var/lib/nfq-guard2/guard.prom", [FILE]),
        ({"ReadWritePaths": "-/var/lib/node_exporter"}, "/var/lib/node_exporter/a.prom", []),
        ({"ProtectSystem": "no"}, "/var/lib/node_exporter/guard.prom", []),
        ({"ProtectSystem": "no"}, "/tmp/guard.prom", [FILE]),  # noqa: S108 - a name, no file
        ({"ProtectSystem": "no", "PrivateTmp": "no"}, "/tmp/guard.prom", []),  # noqa: S108 - a name, no file
    ],
)
def test_a_file(properties: dict[str, str], file: str, keys: list[str]) -> None:
    assert refused(properties, metrics_file=file) == keys


def test_an_instance_has_directories_of_its_own() -> None:
    blue = {key: "nfq-guard/blue" for key in SHIPPED if key.endswith("Directory")}
    systemctl = Systemctl("nfq-guard@blue.service", SHIPPED | blue)
    sandbox = sandbox_of(Path("/etc/nfq-guard/blue.toml"), systemctl)
    assert sandbox is not None
    settings = Settings(metrics_file="/var/lib/nfq-guard/guard.prom")
    (mistake,) = mistakes(settings, sandbox)
    assert "/var/lib/nfq-guard/blue" in mistake.expected
    assert "nfq-guard@blue.service" in mistake.expected


def test_a_file_that_no_unit_uses() -> None:
    systemctl = Systemctl("nfq-guard.service", SHIPPED)
    assert sandbox_of(Path("/srv/nfq-guard.toml"), systemctl) is None
    assert sandbox_of(Path("/etc/nfq-guard/blue.toml"), systemctl) is None
    systemctl = Systemctl("nfq-guard.service", SHIPPED, installed=False)
    assert sandbox_of(Path("/etc/nfq-guard/nfq-guard.toml"), systemctl) is None


def test_which_endpoints_only_this_host_reaches() -> None:
    assert only_from_here(Settings())
    assert only_from_here(Settings(metrics_listen="[::1]:1"))
    assert not only_from_here(Settings(metrics_listen="[::]:1"))
