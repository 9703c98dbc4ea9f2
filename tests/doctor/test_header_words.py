# SPDX-License-Identifier: MIT
"""Conditions on the header, from the texts of iptables and nft."""

import pytest

from nfq_guard.doctor.header_words import HeaderWord, split


@pytest.mark.parametrize(
    ("word", "parted"),
    [
        ("-s 192.0.2.0/24", HeaderWord("-s", ("192.0.2.0/24",), False, "")),
        ("! -i eth0", HeaderWord("-i", ("eth0",), True, "")),
        ("--dports 80,443:445", HeaderWord("--dports", ("80", "443:445"), False, "")),
        ("! --match-set bad src", HeaderWord("--match-set", ("bad",), True, "src")),
        ("ip saddr 192.0.2.1", HeaderWord("saddr", ("192.0.2.1",), False, "")),
        ("ip6 daddr != 2001:db8::/32", HeaderWord("daddr", ("2001:db8::/32",), True, "")),
        ("tcp dport { 80, 443-445 }", HeaderWord("dport", ("80", "443-445"), False, "")),
        ("sctp sport 9", HeaderWord("sport", ("9",), False, "")),
        ('iifname { "eth0" }', HeaderWord("iifname", ('"eth0"',), False, "")),
        ("oif @lan", HeaderWord("oif", ("@lan",), False, "")),
        ("tcp flags syn", None),
        ("meta mark 0x1", None),
        ("a limit", None),
        ("-s", None),
    ],
)
def test_split(word: str, parted: HeaderWord | None) -> None:
    assert split(word) == parted
