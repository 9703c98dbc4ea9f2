# SPDX-License-Identifier: MIT
"""Each fault, with the campaigns of `make faults` that inject it and the tests that cover it."""

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """One fault.

    Attributes:
        code: Its name.
        what: What happens.
        campaigns: Names for `python -m tests.faults --fault`.
        tests: Node ids of pytest.
        reason: Why a target is missed, or why no test covers the fault.
    """

    code: str
    what: str
    campaigns: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    reason: str = ""


_SERVICE: Final = "tests/systemd/test_service.py::"
_RUN: Final = "tests/service/test_run_kernel.py::"

CATALOGUE: Final = (
    Entry(
        "F1",
        "the daemon is killed",
        ("killed-open", "killed-closed"),
        (
            f"{_SERVICE}test_a_daemon_that_is_killed_is_restarted",
            f"{_SERVICE}test_rules_after_a_kill",
            f"{_SERVICE}test_packets_wait_for_the_next_daemon",
            "tests/service/test_fail_modes_kernel.py::test_killed",
        ),
        "the outage is up to 250 ms of systemd, to which it rounds its timers, and the start of a "
        "program in Python, mostly its imports; it grows with the load of the machine",
    ),
    Entry(
        "F2",
        "the daemon hangs",
        ("stopped",),
        (
            f"{_SERVICE}test_a_loop_that_hangs_is_restarted_by_the_watchdog",
            "tests/service/test_fail_modes_kernel.py::test_stopped",
        ),
        "the watchdog's 2 s, and then the outage of F1",
    ),
    Entry(
        "F3",
        "the service is restarted",
        ("restarted-open", "restarted-closed"),
        (
            f"{_SERVICE}test_rules_stay_over_a_restart",
            f"{_SERVICE}test_root_prepares_a_restart_while_the_old_daemon_serves",
            f"{_SERVICE}test_packets_wait_for_the_next_daemon",
        ),
        "no process serves the queue between the end of the old daemon and the start of the new "
        "one, which is that of Python and of its modules; in fail mode closed the packets wait, "
        "and are lost where the queue is full",
    ),
    Entry(
        "F4",
        "reloads under load",
        ("reloads",),
        ("tests/service/test_reload_kernel.py::test_reloads_under_load",),
    ),
    Entry(
        "F5",
        "the configuration is damaged",
        ("corrupted",),
        (
            f"{_RUN}test_reload_adopts_a_valid_policy_and_keeps_it_over_a_mistaken_one",
            "tests/service/test_last_good.py::test_whichever_file_has_the_mistake",
        ),
        "a file of 1 MB takes its time, in a thread beside the packets",
    ),
    Entry("F6", "the disk of the log is full", ("full-disk",), (f"{_RUN}test_full_disk",)),
    Entry(
        "F7",
        "nobody reads the log",
        ("stalled-log",),
        (f"{_RUN}test_stalled_reader_of_the_log",),
    ),
    Entry(
        "F8",
        "more packets than the queue takes",
        ("overflow-open", "overflow-closed"),
        (f"{_RUN}test_flood_beyond_queue_and_buffer",),
    ),
    Entry(
        "F9",
        "more packets than the socket's buffer takes",
        ("buffer-open", "buffer-closed"),
        (f"{_RUN}test_flood_beyond_queue_and_buffer",),
    ),
    Entry(
        "F10",
        "conntrack's table is full",
        ("full-table",),
        reason="a machine whose limit is higher than the campaign fills",
    ),
    Entry(
        "F11",
        "the clock jumps",
        ("clock-jumps",),
        reason="a garbage collection or a log of many lines, on a busy machine",
    ),
    Entry(
        "F12",
        "the network namespace or an interface goes",
        ("gone",),
        reason="the end waits for the programs that remove the rules",
    ),
    Entry(
        "F13",
        "memory runs out",
        ("memory",),
        (
            "tests/service/test_loop.py::test_threads_that_a_limit_of_the_process_forbids",
            "tests/service/test_loop.py::test_a_thread_that_ends_before_its_first_line_fails_in_the_loop",
        ),
        "a daemon that gets no memory for a packet ends, as in F1; the limit of the campaign is up "
        "to 1 MB less than what the daemon has already",
    ),
    Entry(
        "F14",
        "packets of any content, through the kernel",
        ("fuzz",),
        ("tests/service/test_reasons_kernel.py::test_other_packets",),
    ),
    Entry(
        "F15",
        "packets of any content, in the process",
        ("decoding",),
        tests=(
            "tests/core/test_wire.py::test_any_octets_decode",
            "tests/core/test_wire.py::test_damaged_packets_decode",
            "tests/core/test_reference_decoder.py::test_random_packets_decode_alike",
        ),
    ),
    Entry(
        "F16",
        "signals at any moment",
        ("signals",),
        (
            "tests/service/test_signals_kernel.py::test_to_a_daemon_that_ends",
            "tests/service/test_signals_kernel.py::test_to_a_worker",
        ),
        "the end waits for the programs that remove the rules",
    ),
    Entry(
        "F17",
        "a second daemon",
        ("second-instance",),
        (
            f"{_RUN}test_second_daemon_names_the_first",
            "tests/firewall/test_daemon.py::test_a_second_daemon_leaves_the_rules_of_the_first",
        ),
        "a second start takes as long as a first, until it finds the owner",
    ),
    Entry(
        "F18",
        "the daemon is killed while a child of it lives",
        ("outlived",),
        ("tests/service/test_supervisor_kernel.py::test_workers_end_when_their_daemon_is_killed",),
    ),
    Entry(
        "F19",
        "judging a packet raises",
        ("judging-raises",),
        (
            "tests/service/test_worker_kernel.py::test_policy_that_raises",
            "tests/service/test_worker_kernel.py::test_lookup_that_raises",
        ),
    ),
    Entry(
        "F20",
        "start, stop and kill, again and again",
        ("starts",),
        (f"{_SERVICE}test_stop_leaves_nothing_behind",),
    ),
    Entry(
        "F21",
        "hours of traffic",
        ("soak",),
        reason="delays of single rounds differ by a quarter; see the curve",
    ),
    Entry(
        "F22",
        "abuse of the control socket",
        ("control-abuse",),
        (
            "tests/service/test_control_kernel.py::test_abuse_of_the_socket_costs_no_packet",
            "tests/service/test_control.py::test_thousands_of_clients_leave_nothing",
        ),
    ),
    Entry("F23", "long connections over a restart", ("connections",)),
    Entry(
        "A1",
        "a local user holds the lock of the rules",
        ("lock",),
        tests=(
            "tests/firewall/test_lock.py::test_only_the_owner_of_the_directory_can_hold_it",
            "tests/firewall/test_lock.py::test_a_planted_link_is_not_followed",
        ),
    ),
    Entry(
        "A2",
        "a broken file and a crash open a closed guard",
        ("mistaken-closed", "mistaken-kernel-drop"),
        tests=(
            f"{_SERVICE}test_a_restart_carries_on_with_the_last_good_configuration",
            "tests/firewall/test_command.py::test_rules_stay_after_a_crash_when_the_configuration_is_broken",
        ),
    ),
    Entry(
        "A3",
        "clients of the metrics take threads, descriptors, the port",
        ("metrics-clients",),
        tests=(
            "tests/telemetry/test_http.py::test_clients_that_say_nothing_never_keep_others_out",
            "tests/telemetry/test_http.py::test_a_client_that_never_reads_has_its_time",
            "tests/telemetry/test_http.py::test_a_port_that_is_taken",
        ),
    ),
    Entry(
        "A4",
        "the first packets after binding get another packet's verdict",
        ("bound-under-load",),
        (
            "tests/nfqueue/test_reader_kernel.py::test_packets_that_come_while_it_binds",
            "tests/nfqueue/test_reader_kernel.py::test_packets_that_overrun_the_buffer_while_it_binds",
        ),
    ),
    Entry(
        "A5",
        "another program flushes the rules",
        ("flushed",),
        (
            f"{_SERVICE}test_a_flushed_ruleset_is_put_back",
            f"{_SERVICE}test_a_daemon_that_cannot_put_rules_back_is_restarted",
            "tests/service/test_kept_rules_kernel.py::test_a_flushed_ruleset_is_put_back",
        ),
        "they were not back within the 8 s that the campaign waits, on a busy machine; the tests "
        "wait for 30 s",
    ),
    Entry(
        "A6",
        "a flood past the queue in fail mode open passes uncounted",
        ("overflow-open", "buffer-open"),
        (
            "tests/service/test_fail_modes_kernel.py::test_stopped",
            "tests/service/test_passed.py::test_packets_between_the_readings_never_make_it_larger",
        ),
    ),
    Entry(
        "A7",
        "a small configuration takes gigabytes",
        ("bombs",),
        tests=("tests/policy/test_policyfile.py::test_wrong_text",),
    ),
    Entry(
        "A8",
        "a forged RST makes a live flow hang",
        ("attacked",),
        tests=(
            "tests/service/test_heal_kernel.py::test_one_forged_rst_neither_ends_nor_hangs_a_flow",
            "tests/service/test_heal_kernel.py::test_a_storm_of_forged_rst_costs_no_connection",
        ),
    ),
    Entry(
        "A9",
        "a restart opens a closed guard",
        ("restarted-closed",),
        (f"{_SERVICE}test_rules_stay_over_a_restart",),
    ),
    Entry(
        "A10",
        "a second daemon takes the rules of the first",
        ("second-instance",),
        (
            "tests/firewall/test_daemon.py::test_a_second_daemon_leaves_the_rules_of_the_first",
            "tests/firewall/test_faults.py::test_the_rules_of_another_daemon_are_left_alone",
        ),
    ),
    Entry(
        "A11",
        "one bad event line ends report and whatif",
        ("damaged-inputs",),
        tests=(
            "tests/telemetry/test_reader.py::test_no_value_raises",
            "tests/telemetry/test_reader.py::test_a_line_of_500_megabytes_takes_no_memory",
        ),
    ),
    Entry(
        "A12",
        "escapes of others reach the terminal",
        ("escapes",),
        tests=(
            "tests/cli/test_hostile_input.py::test_console",
            "tests/cli/test_hostile_input.py::test_hostile_events",
            "tests/cli/test_hostile_input.py::test_what_is_not_printable_stands_as_an_escape",
        ),
    ),
    Entry(
        "A13",
        "planted links are followed",
        ("links",),
        tests=(
            "tests/cli/test_planted_files.py::test_a_link_is_replaced_and_what_it_leads_to_stays",
            "tests/cli/test_planted_files.py::test_an_unreadable_capture_leaves_the_file",
            "tests/cli/test_planted_files.py::test_a_pipe_of_another_user_is_replaced",
        ),
    ),
    Entry(
        "A14",
        "mistakes, log and rates grow without bound",
        ("unbounded",),
        tests=(
            "tests/telemetry/test_limiter.py::test_table_is_bounded_and_nothing_is_lost",
            "tests/policy/test_parse.py::test_long_values_are_cut",
            "tests/policy/test_rates.py::test_all_rules_share_a_bound",
        ),
    ),
    Entry(
        "T1",
        "a link that loses, doubles, delays and reorders what healthy connections send",
        ("transfers",),
        ("tests/kernels/netem_and_flowtables.py::test_a_link_that_reorders",),
        "runs of some seconds differ; a daemon that has just started reads the rules of the host",
    ),
)
