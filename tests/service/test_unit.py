# SPDX-License-Identifier: MIT
"""Settings that the sandbox of the installed unit does not permit are mistakes."""

import dataclasses
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from nfq_guard.firewall.xtables import Result
from nfq_guard.service import unit
from nfq_guard.service.config import load_config
from nfq_guard.service.settings import Settings
from nfq_guard.service.unit import mistakes, only_from_here, sandbox_of, unread_pods

# The output of `systemctl show` for the unit without drop-ins.
SHIPPED = {
    "LoadState": "loaded",
    "IPAddressAllow": "",
    "IPAddressDeny": "::/0 0.0.0.0/0",
    "RestrictAddressFamilies": "AF_NETLINK AF_UNIX",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "User": "nfq-guard",
    "AmbientCapabilities": "cap_net_admin",
    "CapabilityBoundingSet": "cap_net_admin",
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
HIDDEN = "/tmp, /var/tmp, /home, /root, /run/user"  # noqa: S108 - names


class Systemctl:
    """A fake systemctl that knows one unit."""

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
    source = "/etc/nfq-guard/nfq-guard.toml"
    return [one.key for one in mistakes(Settings(**settings), source, sandbox)]  # type: ignore[arg-type] # settings of text


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


@pytest.mark.parametrize("key", ["log", "events_file", "metrics_file", "control_socket"])
@pytest.mark.parametrize(
    ("properties", "path", "fine"),
    [
        ({}, "/var/log/nfq-guard/x", True),
        ({}, "/dev/null", True),
        ({}, "/var/log/x", False),
        ({}, "/tmp/x", False),  # noqa: S108 - a name, no file
        ({"ProtectSystem": "no"}, "/home/x", False),
        ({"ProtectSystem": "no", "ProtectHome": "read-only"}, "/home/x", True),
        ({"ProtectSystem": "no", "InaccessiblePaths": "-/srv/a /srv/b"}, "/srv/b/x", False),
        ({"ProtectSystem": "no", "TemporaryFileSystem": "/srv:ro"}, "/srv/x", False),
        ({"ProtectSystem": "no"}, "/srv/x", True),
    ],
)
def test_each_path_that_the_daemon_writes(
    key: str, properties: dict[str, str], path: str, *, fine: bool
) -> None:
    assert refused(properties, **{key: path}) == ([] if fine else [f"daemon.{key}"])


def test_outputs_of_the_log_that_are_no_files() -> None:
    assert (
        refused({}, log="-") == refused({}, log="journal") == refused({}, control_socket="") == []
    )


@pytest.mark.parametrize(
    ("key", "path", "fine"),
    [
        ("shadow", "trial.toml", True),
        ("shadow", "/etc/nfq-guard/a:b.toml", True),
        ("shadow", "/home/a:b.toml", False),
        ("shadow", "preset:strict", True),
        ("shadow", "/home/trial.toml", False),
        ("pods_dir", "/var/lib/cni/results", True),
        ("pods_dir", "/home/cni/results", False),
    ],
)
def test_each_path_that_the_daemon_reads(key: str, path: str, *, fine: bool) -> None:
    assert refused({}, **{key: path}) == ([] if fine else [f"daemon.{key}"])


READS_ALL = "cap_net_admin cap_dac_read_search"


@pytest.mark.parametrize(
    ("properties", "reads"),
    [
        ({}, False),
        ({"CapabilityBoundingSet": READS_ALL}, False),
        ({"AmbientCapabilities": READS_ALL, "CapabilityBoundingSet": READS_ALL}, True),
        ({"User": "", "CapabilityBoundingSet": READS_ALL}, True),
        ({"User": "root"}, False),
    ],
)
def test_a_unit_that_may_not_read_the_files_of_pods(
    properties: dict[str, str], *, reads: bool
) -> None:
    systemctl = Systemctl("nfq-guard.service", SHIPPED | properties)
    sandbox = sandbox_of(Path("/etc/nfq-guard/nfq-guard.toml"), systemctl)
    assert sandbox is not None
    said = list(unread_pods(Settings(pods_dir="/var/lib/cni/results"), "a file", sandbox))
    assert [one.key for one in said] == ([] if reads else ["daemon.pods_dir"])
    assert all("pods.conf" in one.text for one in said)
    assert not list(unread_pods(Settings(), "a file", sandbox))


def test_an_instance_has_directories_of_its_own() -> None:
    blue = {key: "nfq-guard/blue" for key in SHIPPED if key.endswith("Directory")}
    systemctl = Systemctl("nfq-guard@blue.service", SHIPPED | blue)
    sandbox = sandbox_of(Path("/etc/nfq-guard/blue.toml"), systemctl)
    assert sandbox is not None
    settings = Settings(
        metrics_file="/var/lib/nfq-guard/guard.prom", control_socket="/run/nfq-guard/blue/a.sock"
    )
    (mistake,) = mistakes(settings, "/etc/nfq-guard/blue.toml", sandbox)
    assert "/var/lib/nfq-guard/blue" in mistake.expected
    assert "nfq-guard@blue.service" in mistake.expected


def test_a_file_that_no_unit_uses() -> None:
    systemctl = Systemctl("nfq-guard.service", SHIPPED)
    assert sandbox_of(Path("/srv/nfq-guard.toml"), systemctl) is None
    assert sandbox_of(Path("/etc/nfq-guard/blue.toml"), systemctl) is None
    systemctl = Systemctl("nfq-guard.service", SHIPPED, installed=False)
    assert sandbox_of(Path("/etc/nfq-guard/nfq-guard.toml"), systemctl) is None
    # An instance has its file in /etc.
    systemctl = Systemctl("nfq-guard@blue.service", SHIPPED)
    assert sandbox_of(Path("/srv/blue.toml"), systemctl) is None


@pytest.mark.parametrize(
    ("properties", "user", "more_groups"),
    [
        ({}, "nfq-guard", False),
        ({"User": ""}, "", False),
        ({"User": "root"}, "", False),
        ({"User": "0"}, "", False),
        ({"Group": "nfq-guard"}, "nfq-guard", False),
        ({"Group": "adm"}, "nfq-guard", True),
        ({"SupplementaryGroups": "adm"}, "nfq-guard", True),
    ],
)
def test_user_and_groups_of_a_unit(
    properties: dict[str, str], user: str, *, more_groups: bool
) -> None:
    systemctl = Systemctl("nfq-guard.service", SHIPPED | properties)
    sandbox = sandbox_of(Path("/etc/nfq-guard/nfq-guard.toml"), systemctl)
    assert sandbox is not None
    assert (sandbox.user, sandbox.more_groups) == (user, more_groups)


def test_which_endpoints_only_this_host_reaches() -> None:
    assert only_from_here(Settings())
    assert only_from_here(Settings(metrics_listen="[::1]:1"))
    assert not only_from_here(Settings(metrics_listen="[::]:1"))


@pytest.mark.parametrize(
    ("properties", "user", "keys"),
    [
        ({}, "nobody", ["daemon.user"]),
        ({}, "nfq-guard", []),
        ({}, "", []),
        ({"User": ""}, "nobody", []),
        ({"User": "nobody"}, "nobody", []),
    ],
)
def test_a_user_that_a_service_of_another_cannot_become(
    properties: dict[str, str], user: str, keys: list[str]
) -> None:
    assert refused(properties, user=user) == keys


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("/home/site.toml", [f"files that nfq-guard.service sees: its sandbox hides {HIDDEN}"]),
        ("/etc/nfq-guard/site.toml", []),
    ],
)
def test_a_policy_that_the_sandbox_hides(file: str, expected: list[str]) -> None:
    sandbox = sandbox_of(
        Path("/etc/nfq-guard/nfq-guard.toml"), Systemctl("nfq-guard.service", SHIPPED)
    )
    assert sandbox is not None
    config = dataclasses.replace(load_config(None), source="a file", files={file: b""})
    found = [str(one) for one in unit.refused(config, sandbox)]
    assert found == [f"expected {text}, found {file}" for text in expected]


def test_links_on_the_way_to_what_the_service_reads_and_writes(tmp_path: Path) -> None:
    """Systemd hides and opens places, whatever the names are by which a file is reached."""
    (tmp_path / "data").mkdir()
    (tmp_path / "lib").symlink_to("data")
    (tmp_path / "lib" / "policy.toml").write_text("")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "link").symlink_to("../data")
    (tmp_path / "outside.toml").symlink_to("home/link/policy.toml")
    (tmp_path / "inside").symlink_to("data/nfq-guard")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "null").symlink_to("/dev/null")
    hidden = unit.Sandbox("a.service", writable=None, hidden=(f"{tmp_path}/home",), user="")
    config = dataclasses.replace(load_config(None), source="a file")

    def read(name: str) -> list[str]:
        files = {str(tmp_path / name): b""}
        return [str(one) for one in unit.refused(dataclasses.replace(config, files=files), hidden)]

    (said,) = read("outside.toml")
    assert said.endswith(
        f"found {tmp_path}/outside.toml, which leads to {tmp_path}/data/policy.toml"
    )
    assert read("lib/policy.toml") == read("round") == []

    for folder in ("lib/nfq-guard", "data/nfq-guard"):
        sandbox = unit.Sandbox("a.service", writable=(str(tmp_path / folder),), hidden=(), user="")
        for name, fine in (("lib/nfq-guard/m", True), ("inside/m", True), ("outside.toml", False)):
            settings = Settings(control_socket="", metrics_file=str(tmp_path / name))
            assert (list(mistakes(settings, "a file", sandbox)) == []) is fine, (folder, name)
    assert refused({}, control_socket="/var/run/nfq-guard/control.sock") == []
    assert refused({"PrivateTmp": "no"}, log=str(tmp_path / "null")) == []
    assert refused({}, log="/dev/stderr") == []


def test_a_service_does_not_start_without_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its unit names the file, so the defaults that `run` alone would take are of no use to it."""
    monkeypatch.setattr("nfq_guard.service.config.DEFAULT_PATH", tmp_path / "none")
    (said,) = unit.refused(load_config(None), unit.Sandbox("a.service"))
    assert str(said).startswith("expected the file that a.service starts with, found no /etc/")


@pytest.mark.parametrize("place", ["/etc/nfq-guard", "/srv/a fleet"])
def test_a_file_that_a_drop_in_names(place: str) -> None:
    """It is that of the service, and not of an instance of its name; the usual one is nobody's."""
    file = f"{place}/site.toml"
    has = SHIPPED | {"Environment": f'LANG=C "CONFIG={file}"'}
    systemctl = Systemctl("nfq-guard.service", has)
    sandbox = sandbox_of(Path(file), systemctl)
    assert sandbox is not None
    assert sandbox.unit == "nfq-guard.service"
    assert sandbox_of(Path("/etc/nfq-guard/nfq-guard.toml"), systemctl) is None
    has["Environment"] = 'A="'
    assert sandbox_of(Path("/etc/nfq-guard/nfq-guard.toml"), systemctl) is not None


def test_a_file_of_the_unit_by_another_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "DEFAULT_PATH", Path.cwd() / "nfq-guard.toml")
    systemctl = Systemctl("nfq-guard.service", SHIPPED)
    for name in ("nfq-guard.toml", "./nfq-guard.toml", "a/../nfq-guard.toml"):
        assert sandbox_of(Path(name), systemctl) is not None


@pytest.mark.kernel
@pytest.mark.parametrize("reads_all", [False, True])
def test_what_the_user_of_a_service_cannot_write(*, reads_all: bool) -> None:
    """Root, who may write everything, asks for the user."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        config = dataclasses.replace(load_config(None), source="a file")
        sandbox = unit.Sandbox(
            "a.service", writable=None, owned=(name,), hidden=(), reads_all=reads_all, user="nobody"
        )

        def found(**settings: str | tuple[str, ...]) -> list[str]:
            changed = msgspec.structs.replace(config.settings, control_socket="", **settings)
            return [
                one.key
                for one in unit.refused(dataclasses.replace(config, settings=changed), sandbox)
            ]

        assert found(log=(f"{name}/log", "/dev/stderr"), events_file=f"{name}/events") == []
        (place / "log").touch(mode=0o644)
        assert found(log=(f"{name}/log",)) == ["daemon.log"]
        assert found(metrics_file=f"{name}/log") == []  # a new file takes its place
        assert found(metrics_file=f"{name}/of/m") == ["daemon.metrics_file"]
        (place / "of").mkdir(mode=0o755)
        assert found(capture_dir=f"{name}/of") == ["daemon.capture_dir"]
        (place / "of").chmod(0o777)
        assert found(capture_dir=f"{name}/of", metrics_file=f"{name}/of/m") == []
