# SPDX-License-Identifier: MIT
"""The text of `nfq-guard status`."""

from msgspec.structs import replace

from nfq_guard.cli.status import lines
from nfq_guard.engine import Mode
from nfq_guard.service.status import ActingPolicy, PodsStatus, PolicyFacts, ReloadStatus, RulesState
from tests.support.status import daemon_status, queue_status, rules_status


def text(**changes: object) -> str:
    return "\n".join(lines(daemon_status(**changes)))


def test_a_daemon_that_saw_nothing() -> None:
    shown = text()
    for part in (
        "dry-run (every packet is accepted)",
        "(1 d 1 h), pid 7",
        "rules       as configured (3 s ago)",
        "queue 0     serving by pid 7: 2.0 packets/s, 0 in all, 0 waiting",
        "reload      none",
        "no INVALID packet so far",
    ):
        assert part in shown


def test_durations() -> None:
    for seconds, words in ((5, "(5 s)"), (65, "(1 min 5 s)"), (3_700, "(1 h 1 min)")):
        assert words in text(uptime_s=float(seconds))


def test_mode_and_rate_limit() -> None:
    assert "every packet" not in text(mode=Mode.ENFORCE)
    assert "open, also above 100 packets/s" in text(max_rate_pps=100)


def test_settings_that_wait_for_a_restart() -> None:
    policy = ActingPolicy(source="x", digest="1", rules=1, restart_for=("batch",))
    shown = text(policy=policy).splitlines()
    (row,) = [row for row, line in enumerate(shown) if "daemon.batch changed in the file" in line]
    assert shown[row - 1].startswith("config ")


def test_rules_that_differ_and_rules_that_were_not_checked() -> None:
    assert "differ (3 s ago): a; b" in text(rules=rules_status(RulesState.DIFFER, "a", "b"))
    shown = text(rules=rules_status(RulesState.FORBIDDEN, problem="CAP_NET_ADMIN is missing"))
    assert "not checked (3 s ago): CAP_NET_ADMIN is missing" in shown
    shown = text(rules=rules_status(RulesState.IN_PLACE, problem="CAP_NET_RAW is missing"))
    assert "in place (3 s ago), not compared with the configuration: CAP_NET_RAW is mis" in shown


def test_losses_are_shown_where_there_are_any() -> None:
    shown = text(queues=(queue_status(queue_full_drops=3),), counters={"unjudged_drops": 9})
    assert "3 dropped because the queue was full" in shown
    assert "9 packets dropped by the fail mode" in shown
    assert "socket buffer" not in shown
    assert "above the rate" not in shown
    queues = (queue_status(judging_failures=1, verdict_errors=2),)
    shown = text(queues=queues, counters={"unserved_drops": 1, "log_lines_dropped": 1})
    assert "1 packet that could not be judged" in shown
    assert "2 verdict messages for packets that the kernel had dropped" in shown
    assert "1 packet dropped because a worker or the daemon was replaced" in shown
    assert "1 log line dropped" in shown


def test_heals_are_shown_where_there_are_any() -> None:
    assert "heal" not in text()
    queue = replace(queue_status(heals=3, heals_undone=1, heals_over_limit=4), healed_flows=2)
    shown = text(queues=(queue,))
    assert "2 flows healed at present; 3 heals made, 1 undone, 4 packets over a limit" in shown
    assert "1 would be made in enforce" in text(queues=(queue_status(would_heal=1),))


def test_the_pods_that_events_name() -> None:
    assert "pods" not in text()
    shown = text(pods=PodsStatus(read=True, addresses=9, skipped=2))
    assert "events name those of 9 addresses" in shown
    assert "2 files of pods_dir skipped" in shown
    assert "skipped" not in text(pods=PodsStatus(read=True, addresses=9, skipped=0))
    assert "has not been read" in text(pods=PodsStatus(read=False, addresses=0, skipped=0))


def test_a_policy_on_trial() -> None:
    queues = tuple(queue_status(number, shadow_would_drop=2) for number in range(2))
    shown = text(shadow=PolicyFacts(source="trial", digest="2", rules=5), queues=queues)
    assert "trial, 5 rules, hash 2" in shown
    assert "would drop 4 packets" in shown


def test_reloads() -> None:
    counters = {"reloads": 1, "reload_failures": 2}
    taken = text(last_reload=ReloadStatus(at="noon", mistakes=()), counters=counters)
    assert "noon taken; 1 taken, 2 refused" in taken
    refused = text(last_reload=ReloadStatus(at="noon", mistakes=("a", "b")), counters=counters)
    assert "noon refused: a; b; 1 taken, 2 refused" in refused


def test_the_last_error_without_its_traceback() -> None:
    error = {"at": "noon", "event": "judging_failed", "problem": "x", "traceback": "long"}
    assert "noon judging_failed problem=x" in text(last_error=error)
    assert "long" not in text(last_error=error)
    refused = {"at": "noon", "event": "reload_failed", "mistakes": ["a: expected b", "c"]}
    assert "noon reload_failed mistakes=a: expected b; c" in text(last_error=refused)


def test_packets_by_reason_and_by_rule() -> None:
    shown = text(
        reasons={"seq-over": {"drop": 5}, "no-entry": {"allow": 1}},
        actions={"drop": 5, "log": 0, "allow": 1},
        decided_by={"first": 1, "second": 5},
    ).splitlines()
    table = shown[shown.index("") + 1 :]
    assert [line.split() for line in table] == [
        ["reason", "drop", "log", "allow"],
        ["no-entry", "0", "0", "1"],
        ["seq-over", "5", "0", "0"],
        ["total", "5", "0", "1"],
        [],
        ["rule", "packets"],
        ["second", "5"],
        ["first", "1"],
    ]


def test_a_queue_without_a_worker() -> None:
    assert "stuck by pid 7" in text(queues=(queue_status(state="stuck"),))
