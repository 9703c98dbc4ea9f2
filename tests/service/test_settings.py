# SPDX-License-Identifier: MIT
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.engine import Mode
from nfq_guard.errors import Mistake
from nfq_guard.service.settings import Settings, parse_listen, parse_queues, parse_settings


def parsed(text: str) -> tuple[Settings, list[str]]:
    mistakes: list[Mistake] = []
    settings = parse_settings(tomllib.loads(text), mistakes)
    return settings, [str(mistake) for mistake in mistakes]


def test_the_default_is_dry_run() -> None:
    settings, mistakes = parsed("")
    assert (settings.mode, settings.fail_mode, mistakes) == (Mode.DRY_RUN, "open", [])


def test_every_setting_given() -> None:
    settings, mistakes = parsed(
        """
        mode = "enforce"
        queues = "0-3"
        zones = [0, 5]
        fail_mode = "kernel-drop"
        log_interval_s = 2
        metrics_listen = "[::1]:9477"
        """
    )
    assert mistakes == []
    assert list(settings.queue_numbers) == [0, 1, 2, 3]
    assert (settings.mode, settings.zones, settings.log_interval_s) == (Mode.ENFORCE, (0, 5), 2)


def test_all_mistakes_at_once() -> None:
    _, mistakes = parsed(
        """
        mode = "on"
        queue = 65536
        queu = 1
        zones = []
        fail_mode = "shut"
        batch = "many"
        queue_length = 1.5
        reinstall_rules = 1
        queues = "3-1"
        metrics_listen = "9477"
        log = ""
        """
    )
    assert mistakes == [
        "daemon.mode: expected 'enforce' or 'dry-run', found 'on'",
        "daemon.queue: expected a whole number from 0 to 65535, found 65536",
        "daemon.queu: expected a setting of the daemon (did you mean 'queue'?), "
        "found unknown key 'queu'",
        "daemon.zones: expected an array, each a whole number from 0 to 65535, not empty, "
        "found an empty list",
        "daemon.fail_mode: expected 'open' or 'closed' or 'kernel-drop', found 'shut'",
        "daemon.batch: expected a whole number from 1 to 1024, found 'many'",
        "daemon.queue_length: expected a whole number from 1 to 1048576, found 1.5",
        "daemon.reinstall_rules: expected true or false, found 1",
        "daemon.log: expected a string, not empty, or an array, each a string, not empty, found ''",
        "daemon.queues: expected A-B with 0 <= A <= B <= 65535 and at most 32 queues, such as "
        "'0-3', found '3-1'",
        "daemon.metrics_listen: expected HOST:PORT, such as '127.0.0.1:9477', found '9477'",
    ]


def test_a_word_that_is_nearly_right_is_suggested() -> None:
    _, mistakes = parsed('mode = "enforc"\nfail_mode = "kernel_drop"\nbackend = "nftable"')
    assert mistakes == [
        "daemon.mode: expected 'enforce' or 'dry-run', found 'enforc' (did you mean 'enforce'?)",
        "daemon.fail_mode: expected 'open' or 'closed' or 'kernel-drop', found 'kernel_drop' "
        "(did you mean 'kernel-drop'?)",
        "daemon.backend: expected 'auto' or 'legacy' or 'nft' or 'nftables', found 'nftable' "
        "(did you mean 'nftables'?)",
    ]


@pytest.mark.parametrize("path", ["results", "./results", "~/results", "/var/\\u0000results"])
def test_pods_are_in_an_absolute_path(path: str) -> None:
    _, (mistake,) = parsed(f'pods_dir = "{path}"')
    expected = "daemon.pods_dir: expected an absolute path, such as '/var/lib/cni/results', found "
    assert mistake.startswith(expected)
    assert mistake.isprintable()
    assert parsed('pods_dir = "/var/lib/cni/results"')[1] == []


def test_the_kernels_log_serves_one_queue() -> None:
    assert parsed('evidence = "kernel-log"')[1] == []
    assert parsed('evidence = "auto"\nqueues = "0-1"')[1] == []
    _, mistakes = parsed('evidence = "kernel-log"\nqueues = "0-1"')
    assert mistakes == [
        "daemon.evidence: expected another evidence with several queues, because the kernel's log "
        "serves one, found 'kernel-log'"
    ]
    _, mistakes = parsed('evidence = "procfs"')
    assert mistakes == [
        "daemon.evidence: expected 'auto' or 'bpf' or 'kernel-log' or 'ctnetlink', found 'procfs'"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-3", range(4)),
        ("5", range(5, 6)),
        ("2:2", range(2, 3)),
        ("9-40", range(9, 41)),
        ("9-41", None),
        ("3-1", None),
        ("a", None),
    ],
)
def test_queues(text: str, expected: range | None) -> None:
    assert parse_queues(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("::1:80", None),
        ("x:99999", None),
        ("", None),
    ],
)
def test_listen(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_listen(text) == expected


scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)
)


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(Settings.__struct_fields__), st.text(max_size=8)),
        st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(st.text(), scalars)),
    )
)
def test_any_table_is_read(table: dict[str, Any]) -> None:
    """Each key is either accepted or a mistake."""
    mistakes: list[Mistake] = []
    settings = parse_settings(table, mistakes)
    wrong = {mistake.key for mistake in mistakes}
    for key, value in table.items():
        taken = tuple(value) if isinstance(value, list) else value
        known = getattr(settings, key, None) == taken or isinstance(value, float)
        assert known or f"daemon.{key}" in wrong


@pytest.mark.parametrize("value", ['[""]', '["-", ""]'])
def test_an_output_without_a_name(value: str) -> None:
    _, mistakes = parsed(f"log = {value}")
    assert mistakes == ["daemon.log: expected outputs that are not empty, found ''"]
