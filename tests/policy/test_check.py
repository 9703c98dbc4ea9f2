# SPDX-License-Identifier: MIT
"""`nfq-guard check`: output, JSON and exit status."""

import json
from pathlib import Path

import pytest

from nfq_guard.cli import main
from nfq_guard.policyfile import preset_names

SHADOWED = """
[policy]
default = "allow"
[[policy.rule]]
name = "web"
dport = 80
action = "log"
[[policy.rule]]
name = "never"
dport = 80
nat = "snat"
action = "drop"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "nfq-guard.toml"
    path.write_text(SHADOWED)
    return path


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["check", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_every_mistake_of_both_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[daemon]\nmdoe = "enforce"\n[policy]\ndefault = "dorp"\n[polcy]\n')
    status, out, err = _run(capsys, str(path))
    lines = err.splitlines()
    assert (status, out, len(lines)) == (2, "", 3)
    assert all(line.startswith(f"nfq-guard: {path}: ") for line in lines)
    assert [line.split(": ")[2] for line in lines] == ["daemon.mdoe", "polcy", "policy.default"]


def test_mistakes_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[policy]\ndefault = "dorp"\n')
    status, out, _ = _run(capsys, str(path), "--format", "json")
    report = json.loads(out)
    assert status == 2
    assert report["fine"] is False
    assert report["mistakes"] == [
        {
            "key": "policy.default",
            "expected": "drop, log or allow",
            "found": "'dorp'",
            "suggestion": "drop",
            "line": 2,
        }
    ]


def test_warning_names_the_earlier_rule(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    status, out, err = _run(capsys, str(config))
    assert (status, out) == (0, f"{config}: fine, 2 rules\n")
    assert err == (
        f"warning: {config}: policy.rule[1] (never): can never match:"
        " policy.rule[0] (web) already matches all its packets\n"
    )
    assert _run(capsys, str(config), "--strict")[0] == 1


def test_report_as_json(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    _, out, _ = _run(capsys, str(config), "--format", "json", "--explain-rule")
    report = json.loads(out)
    assert report["fine"] is True
    assert report["rules"] == 2
    assert report["warnings"][0]["rule"] == "never"
    assert report["sentences"][-1] == "Where no rule matches: let the packet pass."


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = _run(capsys, "preset:kube-proxy", "--explain")
    assert out.splitlines()[1] == (
        "Rule forwarded: drop the packet when the hook is PREROUTING or FORWARD."
    )


def test_quiet(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[daemon]\nmode = "enforce"\n')
    assert _run(capsys, str(path), "--quiet") == (0, "", "")
    status, out, _ = _run(capsys, str(path))
    assert status == 0
    assert out == f"{path}: fine, 10 rules of preset:default, as the file has no [policy]\n"


def test_one_rule(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[policy]\ndefault = "log"\n[[policy.rule]]\naction = "allow"\n')
    assert _run(capsys, str(path))[1] == f"{path}: fine, 1 rule\n"


def test_reason_of_an_old_kernel(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        '[policy]\ndefault = "log"\n[[policy.rule]]\nreason = "seq-under"\naction = "drop"\n'
    )
    assert (
        "kernels like 6.1 never report these reasons"
        in _run(capsys, str(path), "--kernel", "6.1")[2]
    )
    assert _run(capsys, str(path), "--kernel", "5.10")[2] == ""


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, "--schema")
    schema = json.loads(out)
    assert status == 0
    assert set(schema["properties"]) == {"daemon", "policy"}
    settings = schema["$defs"]["Settings"]
    assert "\n" not in settings["description"]
    assert all(described["description"] for described in settings["properties"].values())


def test_defaults_name_the_file_that_does_not_exist(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.toml"
    monkeypatch.setattr("nfq_guard.service.config.DEFAULT_PATH", missing)
    monkeypatch.setattr("nfq_guard.cli.check.DEFAULT_PATH", missing)
    status, out, _ = _run(capsys)
    assert status == 0
    assert out == f"defaults: fine, 10 rules of preset:default; {missing} does not exist\n"


@pytest.mark.parametrize(
    ("setting", "warned"),
    [
        ('metrics_listen = "0.0.0.0:9477"', "IPAddressAllow="),
        ('metrics_listen = "[2001:db8::1]:9477"', "IPAddressAllow="),
        ('metrics_listen = "router.example:9477"', "IPAddressAllow="),
        ('metrics_listen = "127.0.0.1:9477"', ""),
        ('metrics_listen = "localhost:9477"', ""),
        ('metrics_file = "/var/lib/node_exporter/guard.prom"', "ReadWritePaths="),
        ('capture_dir = "/srv/captures"', "adds the directory /srv/captures"),
        ('metrics_file = "/var/lib/nfq-guard/guard.prom"', ""),
        ('events_file = "/srv/events.jsonl"', "adds the directory of /srv/events.jsonl"),
        ('log = ["-", "journal", "log.jsonl"]', "adds the directory of /log.jsonl"),
        ('control_socket = "/srv/control.sock"', ""),
    ],
)
def test_settings_that_the_unit_does_not_allow(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str, warned: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"[daemon]\n{setting}\n")
    status, _, said = _run(capsys, "--strict", str(path))
    # The unit does not use the file.
    assert status == 0
    assert warned in said
    assert bool(said) is bool(warned)
    key = setting.partition(" ")[0]
    assert not warned or f"note: {path}: daemon.{key}: " in said


@pytest.mark.parametrize(
    "file",
    [
        *(f"preset:{name}" for name in preset_names()),
        *map(str, sorted(Path("deploy").rglob("nfq-guard.toml"))),
        "systemd/nfq-guard.toml",
    ],
)
def test_shipped_files_have_no_warning(capsys: pytest.CaptureFixture[str], file: str) -> None:
    assert _run(capsys, "--strict", "--kernel", "6.1", file)[0] == 0


def test_a_warning_names_the_file_of_its_rule(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, more = tmp_path / "file.toml", tmp_path / "more.toml"
    path.write_text('[policy]\ninclude = "more.toml"\ndefault = "allow"\n', encoding="utf-8")
    rule = '[[policy.rule]]\naction = "drop"\nsport = 7\n'
    more.write_text(rule * 2, encoding="utf-8")
    _, _, said = _run(capsys, str(path))
    assert said.startswith(f"warning: {more}: policy.rule[1] ")


def test_a_suggestion_has_a_field_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[daemon]\nque = 1\nmode = 7\n", encoding="utf-8")
    status, out, _ = _run(capsys, "--format", "json", str(path))
    assert status == 2
    unknown, mode = json.loads(out)["mistakes"]
    assert unknown == {
        "key": "daemon.que",
        "expected": "a setting of the daemon",
        "found": "unknown key 'que'",
        "suggestion": "queue",
        "line": 2,
    }
    assert (mode["suggestion"], mode["line"]) == ("", 3)


@pytest.mark.parametrize(
    ("table", "key", "meant"),
    [("daemon", "queue_", "queue"), ("policy", "on_unknwon", "on_unknown")],
)
def test_the_first_thousand_unknown_keys_have_suggestions(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, table: str, key: str, meant: str
) -> None:
    """A search takes 0.1 ms: a file of another kind would take seconds."""
    path = tmp_path / "c.toml"
    lines = "".join(f"{key}{number} = 1\n" for number in range(1100))
    path.write_text(f"[{table}]\n{lines}", encoding="utf-8")
    status, out, _ = _run(capsys, "--format", "json", str(path))
    said = [mistake["suggestion"] for mistake in json.loads(out)["mistakes"]]
    # The policy also lacks `default`.
    assert (status, said[:1100]) == (2, [meant] * 1000 + [""] * 100)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[daemon]\nqueue = 1\n\nshadow = "preset:nosuch"\n', "(line 4)"),
        ("[deamon]\nqueue = 1\n", "unknown key 'deamon' (did you mean 'daemon'?) (line 1)"),
        ('mode = "enforce"\n', "unknown key 'mode' (did you mean 'daemon.mode'?) (line 1)"),
        ("[[rule]]\n", "unknown key 'rule' (did you mean 'policy.rule'?) (line 1)"),
        ('[[policy.rule]]\nnot.not = 1\naction = "drop"\n', "found 'not' (line 2)"),
        *(
            (f'[daemon]\n\n{name} = "/x\\u0000"\n', f"daemon.{name}: expected text without a NUL")
            for name in (
                "log",
                "shadow",
                "events_file",
                "capture_dir",
                "metrics_file",
                "control_socket",
                "user",
            )
        ),
        ('[policy]\ninclude = "a\\u0000"\n', "text without a NUL character"),
    ],
)
def test_what_is_meant_and_where(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8")
    assert main(["check", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_a_long_key_is_cut(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    for table in ("", "[daemon]\n", "[policy]\n"):
        path.write_text(f"{table}{'k' * 100_000} = 1\n", encoding="utf-8")
        assert main(["check", str(path)]) == 2
        assert len(capsys.readouterr().err) < 1500


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        ("heal_timeout_s = 10", "healed for 30 s of a minute"),
        ("heal_timeout_s = 19.5", "heal_flow_per_minute = 3 allows 3 heals of 19.5 s"),
        ("heal_timeout_s = 59\nheal_flow_per_minute = 1", "allows 1 heal of 59 s"),
        ("heal_timeout_s = 20\nheal_per_minute = 2", "heal_per_minute = 2 allows 2 heals of 20 s"),
        ("heal_timeout_s = 20", ""),
        ("heal_timeout_s = 1\nheal_flow_per_minute = 60", ""),
    ],
)
def test_heals_that_leave_a_gap(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: str, warned: str
) -> None:
    """A flow whose window stays lost hangs once its heals of the minute are used up."""
    path = tmp_path / "c.toml"
    path.write_text(f"[daemon]\n{lines}\n")
    status, _, said = _run(capsys, str(path), "--strict")
    assert status == bool(warned)
    assert warned in said
    assert not warned or "daemon.heal_timeout_s: an active flow" in said
    path.write_text(f'[daemon]\n{lines}\n[policy]\ninclude = "preset:observe"\n')
    assert _run(capsys, str(path), "--strict")[0] == 0


def test_a_setting_without_effect(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Files are written from the packets that are kept; no flow is offloaded that may be healed."""
    path = tmp_path / "c.toml"
    path.write_text('[daemon]\ncapture_dir = "/var/log/nfq-guard"\ncapture_packets = 0\n')
    status, _, said = _run(capsys, str(path), "--strict")
    assert status == 1
    assert "daemon.capture_dir: no file is written: capture_packets = 0 keeps no packet" in said
    path.write_text("[daemon]\noffload = true\n")
    status, _, said = _run(capsys, str(path), "--strict")
    assert status == 1
    assert "daemon.offload: no flow is offloaded that rule 'lost-window' may heal" in said
    strict = 'i_know = "drops everything"\ninclude = "preset:strict"\n'
    path.write_text(f"[daemon]\noffload = true\n[policy]\n{strict}")
    assert _run(capsys, str(path), "--strict")[0] == 0
    path.write_text("[daemon]\ncapture_packets = 0\n")
    assert _run(capsys, str(path), "--strict")[0] == 0
