# SPDX-License-Identifier: MIT
"""Each claim of docs/threat-model.md names a test that exists and runs."""

import re
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PAGE = (TREE / "docs/threat-model.md").read_text(encoding="utf-8")
UNITS = TREE / "systemd"
# A test with its decorators, up to its name.
_TEST = r"(?:^@(?:[^\n]|\n(?!@|def ))*\n)*^def {}\("


@pytest.mark.parametrize("test", sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE))))
def test_the_named_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    text = (TREE / file).read_text(encoding="utf-8")
    found = re.search(_TEST.format(name), text, re.MULTILINE)
    assert found is not None
    # A claim whose test does not run is not verified.
    assert not re.search(r"mark\.(skip|xfail)\b", found[0])
    assert not re.search(r"^pytestmark\b.*mark\.(skip|xfail)", text, re.MULTILINE)


def test_every_claim_names_its_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]
    claims = [line for line in rows if not line.endswith("| verified by |")]
    assert len(claims) > 70
    last = [line.rstrip(" |").rpartition(" | ")[2] for line in claims]
    named = r"`tests/[\w/]+\.py::test_\w+`"
    assert [cell for cell in last if not re.fullmatch(f"{named}(, {named})*", cell)] == []


def settings_of(unit: str) -> dict[str, str]:
    """The last value of each setting."""
    lines = (UNITS / unit).read_text(encoding="ascii").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def test_the_directories_of_the_service_are_closed_to_others() -> None:
    modes = {"RuntimeDirectory": "0710", "StateDirectory": "0750", "LogsDirectory": "0750"}
    settings = settings_of("nfq-guard.service")
    assert settings["UMask"] == "0027"
    instance = settings_of("nfq-guard@.service.d/namespace.conf")
    for kind, mode in modes.items():
        assert settings[kind] == "nfq-guard"
        assert instance[kind] == "nfq-guard/%i"
        assert settings[f"{kind}Mode"] == instance[f"{kind}Mode"] == mode


def test_the_metrics_are_on_loopback_alone() -> None:
    text = (UNITS / "nfq-guard-metrics.socket").read_text(encoding="ascii")
    assert re.findall("^Listen.*", text, re.MULTILINE) == ["ListenStream=127.0.0.1:9477"]
