# SPDX-License-Identifier: MIT
"""`nfq-guard rules` as an operator uses it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nfq_guard.cli import main
from tests.firewall.conftest import Host


@pytest.mark.kernel
def test_install_verify_remove(guarded: Host, capsys: pytest.CaptureFixture[str]) -> None:
    with guarded.ns.entered():
        assert main(["rules", "verify"]) == 1
        assert "missing-chain: IPv4" in capsys.readouterr().out
        assert main(["rules", "install", "--queues", "0:3", "--max-rate-pps", "1000"]) == 0
        assert "IPv6" in capsys.readouterr().out
        assert main(["rules", "verify", "--queues", "0:3", "--max-rate-pps", "1000"]) == 0
        assert capsys.readouterr().out == "rules OK\n"
        assert main(["rules", "verify", "--format", "json"]) == 1
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {one["kind"] for one in found} == {"changed-rule", "extra-rule"}
        assert main(["rules", "remove", "--format", "json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["done"]) == 2
        assert main(["rules", "remove"]) == 0
        assert capsys.readouterr().out == "nothing to change\n"


@pytest.mark.kernel
def test_verify_names_a_command_that_repairs(
    guarded: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rules that are missing, outdated, duplicated, misplaced or left over."""
    file = tmp_path / "the guard.toml"
    file.write_text("[daemon]\nqueue = 7\n")
    table = ["iptables-legacy", "-w", "-t", "mangle"]
    damage = (
        (),
        ("-F", "NFQ_GUARD"),
        ("-F", "PREROUTING"),
        ("-A", "PREROUTING", "-m", "conntrack", "--ctstate", "INVALID", "-j", "NFQ_GUARD"),
        ("-A", "NFQ_GUARD", "-j", "ACCEPT"),
        ("-R", "NFQ_GUARD", "1", "-j", "NFQUEUE", "--queue-num", "9"),
        ("-A", "PREROUTING", "-j", "MARK", "--set-mark", "1"),
        ("-I", "FORWARD", "-j", "NFQ_GUARD"),
    )
    with guarded.ns.entered():
        for words in damage:
            if words:
                guarded.ns.run(*table, *words)
            given = ["--backend", "legacy", "--family", "4", "--config", str(file)]
            assert main(["rules", "verify", *given]) == 1, words
            *_, advice = capsys.readouterr().out.splitlines()
            assert advice.startswith("next: `nfq-guard rules install "), words
            assert f"'{file}'" in advice
            assert main(shlex.split(advice.split("`")[1])[1:]) == 0
            assert main(["rules", "verify", *given]) == 0, words
            assert capsys.readouterr().out.endswith("rules OK\n")


@pytest.mark.kernel
def test_show_explains_the_choice(guarded: Host, capsys: pytest.CaptureFixture[str]) -> None:
    with guarded.ns.entered():
        assert main(["rules", "show", "--family", "4", "--fail-mode", "closed"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("# backend ")
        assert "neither backend holds rules" in shown
        assert "--queue-bypass" not in shown
        assert main(["rules", "show", "--format", "json"]) == 0
        record = json.loads(capsys.readouterr().out)
    assert [one["family"] for one in record["families"]] == [4, 6]


def test_each_family_has_the_one_table_of_nftables(capsys: pytest.CaptureFixture[str]) -> None:
    """It replaces an existing one, so that loading both leaves the rules of both."""
    assert main(["rules", "show", "--backend", "nftables", "--format", "json"]) == 0
    four, six = json.loads(capsys.readouterr().out)["families"]
    assert (four["family"], six["family"]) == (4, 6)
    assert four["rules"] == six["rules"]
    assert four["rules"].splitlines()[1] == "delete table inet nfq_guard"


@pytest.mark.parametrize("words", [["--queues", "a:b"], ["--queues", "3:2"]])
def test_queues_that_are_none(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "show", *words]) == 2
    assert "--queues: expected" in capsys.readouterr().err


@pytest.mark.kernel
def test_without_privilege(guarded: Host) -> None:
    """A missing capability is named in one line."""
    words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable]
    done = subprocess.run(
        guarded.ns.argv([*words, "-m", "nfq_guard", "rules", "install"]),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 77
    assert "CAP_NET_ADMIN" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_configuration_decides_where_the_command_line_is_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nfq-guard.toml"
    file.write_text(
        '[daemon]\nmode = "enforce"\nqueues = "2-5"\nfail_mode = "kernel-drop"\n'
        "max_rate_pps = 500\n"
        'families = "4"\nbackend = "nft"\n',
        encoding="ascii",
    )
    assert main(["rules", "show", "--config", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "--queue-balance 2:5" in shown
    assert "NFQ_GUARD_DROP" in shown
    assert "--hashlimit-above 500/sec" in shown
    assert "IPv6" not in shown
    words = ["--queue", "1", "--family", "6", "--fail-mode", "open", "--max-rate-pps", "0"]
    assert main(["rules", "show", "--config", str(file), *words]) == 0
    shown = capsys.readouterr().out
    assert "--queue-num 1 --queue-bypass" in shown
    assert "IPv6: ip6tables-nft-restore" in shown
    assert "hashlimit" not in shown


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("fail_mode", "result", "kept"),
    [("open", "signal", False), ("closed", "signal", True), ("closed", "success", False)],
)
def test_after_a_crash_rules_stay_that_hold_the_fail_mode(
    guarded: Host, tmp_path: Path, fail_mode: str, result: str, kept: bool
) -> None:
    file = tmp_path / "nfq-guard.toml"
    file.write_text(f'[daemon]\nmode = "enforce"\nfail_mode = "{fail_mode}"\n', encoding="ascii")
    words = ["--config", str(file), "--quiet"]
    with guarded.ns.entered():
        assert main(["rules", "install", *words]) == 0
        assert main(["rules", "remove", *words, "--after", result]) == 0
        assert main(["rules", "verify", "--config", str(file)]) == (0 if kept else 1)


@pytest.mark.kernel
def test_rules_can_go_when_the_configuration_is_broken(
    guarded: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mistake is still reported."""
    file = tmp_path / "nfq-guard.toml"
    file.write_text("[daemon]\nmode = 7\n", encoding="ascii")
    with guarded.ns.entered():
        assert main(["rules", "install"]) == 0
        assert main(["rules", "install", "--config", str(file)]) == 2
        assert main(["rules", "remove", "--config", str(file)]) == 0
        assert "daemon.mode" in capsys.readouterr().err
        assert main(["rules", "remove"]) == 0
        assert capsys.readouterr().out == "nothing to change\n"


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("fail_mode", "result", "kept"),
    [
        ("closed", "exit-code", True),
        ("kernel-drop", "exit-code", True),
        ("open", "exit-code", False),
        ("closed", "success", False),
    ],
)
def test_rules_stay_after_a_crash_when_the_configuration_is_broken(
    guarded: Host,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fail_mode: str,
    result: str,
    kept: bool,
) -> None:
    """The fail mode of the last good configuration is in the rules."""
    file = tmp_path / "nfq-guard.toml"
    good = f'[daemon]\nmode = "enforce"\nfail_mode = "{fail_mode}"\n'
    file.write_text(good, encoding="ascii")
    with guarded.ns.entered():
        assert main(["rules", "install", "--config", str(file)]) == 0
        file.write_text(f"{good}nonsense\n", encoding="ascii")
        capsys.readouterr()
        assert main(["rules", "remove", "--config", str(file), "--after", result]) == 0
        out = capsys.readouterr()
        assert "nfq-guard.toml: 4:9: expected valid TOML" in out.err
        assert ("rules kept" in out.out) is kept
        file.write_text(good, encoding="ascii")
        assert main(["rules", "verify", "--config", str(file)]) == (0 if kept else 1)
