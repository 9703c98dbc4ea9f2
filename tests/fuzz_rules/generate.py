# SPDX-License-Identifier: MIT
"""Generates random rule sets of nftables and both variants of iptables, as hosts spell them.

Their matches are about TCP segments from 192.0.2.1 (2001:db8::1) to port 80 of 198.51.100.1
(2001:db8:1::1), forwarded from in0 to out0.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, final

_STATES: Final = ("invalid", "established", "related", "new", "untracked")
_IPTABLES_STATES: Final = tuple(state.upper() for state in _STATES)
_HOOKS: Final = ("prerouting", "forward", "forward", "forward", "forward", "postrouting")
_PRIORITIES: Final = {
    "prerouting": (-450, -300, -250, -190, -160, -150, -140, -100, 0, 5),
    "forward": (-225, -150, -1, 0, 0, 0, 5, 10, 50),
    "postrouting": (-150, 0, 50, 150),
}
_ODD_NAMES: Final = ("accept_in", "INVALID", "drop", "log-drop", "ct_state", "x.y", "f_1", "z")

# Matches that need the conntrack entry.
_OF_ENTRY: Final = (
    "ct status assured",
    "ct status & (seen-reply | dnat) != 0",
    "ct status != snat",
    "ct status dnat",
    "ct direction original",
    "ct direction != reply",
    "ct mark 0",
    "ct mark != 5",
    "ct mark & 1 == 0",
    "ct zone 0",
    "ct zone != 7",
    "ct protocol tcp",
    "ct l3proto ipv4",
    "ct expiration > 1s",
    "ct packets > 0",
    "ct bytes >= 0",
    "ct avgpkt < 9000",
    "ct id != 0",
    'ct helper "ftp"',
    'ct helper != "ftp"',
    "ct label 1",
)
# Matches whose result is the same for every such packet, and is known beforehand.
_KNOWN: Final = (
    "meta l4proto tcp",
    "meta l4proto != tcp",
    "meta l4proto { tcp, udp }",
    "meta l4proto { udp, icmp }",
    "meta l4proto != { udp, icmp }",
    "meta nfproto ipv4",
    "meta nfproto ipv6",
    "meta nfproto != ipv6",
    "meta nfproto . meta l4proto { ipv4 . tcp, ipv6 . udp }",
    "meta protocol ip",
    "meta protocol { ip, ip6 }",
    "meta protocol != ip6",
    "ip protocol tcp",
    "ip protocol != udp",
    "ip6 nexthdr tcp",
    "udp dport 53",
    "udp dport != 53",
    "icmp type echo-request",
    "icmpv6 type != echo-reply",
    "sctp dport 1",
    'iifname "lo"',
    'iifname != "lo"',
    'iif "lo"',
    'iif != "lo"',
    'oifname { "lo" }',
)
# Matches that the doctor cannot know.
_UNKNOWN: Final = (
    'iifname "in0"',
    'iifname != "in0"',
    'iifname { "eth0", "in0" }',
    'iifname "in*"',
    'iifname "eth0"',
    'oifname "out0"',
    'oifname != "out*"',
    'iifname . oifname { "in0" . "out0", "eth0" . "eth1" }',
    "tcp dport 80",
    "tcp dport { 22, 80, 443 }",
    "tcp dport 1-1023",
    "tcp dport != 80",
    "tcp sport >= 1024",
    "th dport 80",
    "@th,16,16 80",
    "tcp flags & (fin | syn | rst | ack) == ack",
    "tcp flags syn",
    "tcp flags ! syn,rst",
    "ip saddr 192.0.2.0/24",
    "ip saddr != 192.0.2.0/24",
    "ip daddr { 198.51.100.0/24, 10.0.0.0/8 }",
    "ip6 saddr 2001:db8::/32",
    "ip ttl < 3",
    "ip dscp cs0",
    "meta mark 0",
    "meta mark & 0xff == 0",
    "meta mark != 5",
    "meta mark 4-6",
    "meta mark { 5, 0x10 }",
    "meta mark > 4",
    "meta mark & 0x10 == 0x10",
    'meta mark . iifname { 5 . "in0" }',
    "meta length > 20",
    "meta length 2000-3000",
    "meta pkttype host",
    'meta iifkind "tun"',
    "meta skuid 0",
    "meta cgroup 0",
    "meta priority none",
    "meta ipsec missing",
    "rt ipsec missing",
    "fib daddr type local",
    "fib saddr . iif oif missing",
    "tcp option maxseg exists",
    "exthdr hbh missing",
    "ip saddr @hosts4",
    "ip saddr != @hosts4",
    "ip saddr . tcp dport @pairs",
    "tcp dport @ports",
    "tcp dport != @ports",
)
# Statements that do not decide; `limit` and the like may end the rule.
_STATEMENTS: Final = (
    "counter",
    'log prefix "drop INVALID: "',
    'log prefix "a b" level warn flags all',
    "log group 7",
    "meta nftrace set 0",
    "meta priority set none",
    "ct mark set 5",
    "ct mark set meta mark",
    "add @seen4 { ip saddr }",
    "update @seen4 { ip saddr timeout 10s }",
    "add @seen6 { ip6 saddr }",
    "ip ttl set 60",
    "tcp option maxseg size set rt mtu",
    "tcp option maxseg size set 1000",
)
_MARKS: Final = (
    "meta mark set 5",
    "meta mark set meta mark | 0x10",
    "meta mark set meta mark ^ 0x14",
    "ct state invalid meta mark set 5",
    "ct state established meta mark set 0x10",
    "meta mark set meta mark & 0xffffff00",
    "meta mark set ct mark",
    "meta mark set ct state map { invalid : 5, established : 6 }",
    "meta mark set ct state map { new : 6 }",
    "meta mark set meta l4proto map { tcp : 5, udp : 6 }",
)
_LIMITS: Final = (
    "limit rate 10/hour burst 5 packets",
    "limit rate over 10/hour burst 5 packets",
    "quota 10 mbytes",
    "quota over 10 mbytes",
    "ct count 5",
    "ct count over 5",
    "meta priority set tcp dport map { 22 : 1:1 }",
    "ct mark set tcp dport map { 80 : 5, 443 : 6 }",
    "meta mark set socket mark",
    "meta mark set tcp option maxseg size",
)
_TERMINAL: Final = (
    *("drop", "drop", "drop", "accept", "accept", "return"),
    *("reject", "reject with tcp reset"),
)
_COMMENTS: Final = (
    "",
    "",
    "",
    ' comment "it\'s { odd }; \\\\ # yes"',
    ' comment "ct state invalid"',
)

_IPTABLES_ENTRY: Final = (
    "-m conntrack --ctstatus ASSURED",
    "-m conntrack ! --ctstatus ASSURED",
    "-m conntrack --ctstatus NONE",
    "-m conntrack --ctdir ORIGINAL",
    "-m conntrack --ctproto 6",
    "-m conntrack ! --ctproto 17",
    "-m conntrack --ctexpire 1:999999",
    "-m conntrack --ctorigdstport 80",
    "-m connmark --mark 0x0",
    "-m connmark ! --mark 0x1/0xff",
    "-m connbytes --connbytes 0: --connbytes-mode packets --connbytes-dir both",
    "-m connbytes ! --connbytes 5: --connbytes-mode bytes --connbytes-dir original",
    "-m cluster --cluster-total-nodes 2 --cluster-local-nodemask 3 --cluster-hash-seed 7",
    "-m cluster --cluster-total-nodes 2 ! --cluster-local-nodemask 3 --cluster-hash-seed 7",
    "-m helper --helper ftp",
    "-m helper ! --helper ftp",
    "-m connlabel --label 1",
    "-m connlabel ! --label 1",
)
_IPTABLES_KNOWN: Final = (
    "-p tcp",
    "! -p tcp",
    "-p udp",
    "! -p udp",
    "-p all",
    "-i lo",
    "! -i lo",
    "-p tcp -m comment --comment INVALID",
    '-m comment --comment "a -j DROP of ! \'all\' \\"INVALID\\""',
    "-m comment --comment -j",
)
_IPTABLES_UNKNOWN: Final = (
    "-i in0",
    "! -i in0",
    "-i in+",
    "-i eth0",
    "-i +",
    "-p tcp -m tcp --dport 80",
    "-p tcp -m tcp ! --dport 80",
    "-p tcp -m multiport --dports 22,80",
    "-p tcp -m multiport ! --dports 22,80",
    "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK ACK",
    "-p tcp -m tcp --syn",
    "-p tcp -m tcp ! --syn",
    "-m mark --mark 0x0/0xff",
    "-m mark ! --mark 0x5",
    "-m mark --mark 0x5",
    "-m mark --mark 0x10/0x10",
    "-m length --length 20:100",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype ! --dst-type LOCAL",
    "-m statistic --mode nth --every 1 --packet 0",
    "-m u32 --u32 0x0=0x0:0xffffffff",
    "-m u32 ! --u32 0x0=0x0",
    "-m time --timestart 00:00 --timestop 23:59",
    "-m pkttype --pkt-type unicast",
    "-m recent --name seen --rcheck",
    "-m recent --name seen ! --rcheck",
    "-m hashlimit --hashlimit-above 100/sec --hashlimit-name f",
    "-m hashlimit --hashlimit-upto 100/sec --hashlimit-name g",
    "-m connlimit --connlimit-above 5",
    "-m connlimit --connlimit-upto 5",
    "-m policy --dir in --pol none",
    "-m string --string GET --algo bm",
    "-m dscp --dscp 0x00",
    '-m bpf --bytecode "1,6 0 0 1"',
)
_IPTABLES_LIMITS: Final = ("-m limit --limit 10/hour --limit-burst 5",)
_IPTABLES_GO_ON: Final = (
    '-j LOG --log-prefix "DROP INVALID: "',
    "-j NFLOG --nflog-group 7",
    "-j MARK --set-mark 5",
    "-j MARK --xor-mark 0x14",
    "-m conntrack --ctstate INVALID -j MARK --set-mark 5",
    "-m conntrack --ctstate ESTABLISHED -j MARK --or-mark 0x10",
    "",
    "-m recent --name seen --set",
)
_IPTABLES_TERMINAL: Final = (
    *("-j DROP", "-j DROP", "-j DROP", "-j ACCEPT", "-j ACCEPT", "-j RETURN"),
    *("-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT"),
)


class Part(NamedTuple):
    """Rules for one program.

    Attributes:
        program: `nft`, or the program that restores them, of IPv4.
        text: The rules.
    """

    program: str
    text: str


@final
@dataclass(slots=True)
class RuleSet:
    """A random rule set.

    Attributes:
        parts: Its rules.
        exact: Whether nothing in it depends on what the doctor cannot know.
    """

    parts: list[Part] = field(default_factory=list)
    exact: bool = True

    def __str__(self) -> str:
        """The rules, as they are loaded."""
        return "\n".join(f"# {part.program}\n{part.text}" for part in self.parts)


def rule_set(rng: random.Random) -> RuleSet:
    """One rule set."""
    made = RuleSet(exact=rng.random() < 0.4)
    kinds = rng.choices(("nft", "iptables-legacy", "iptables-nft", "both"), (6, 2, 1, 1))[0]
    maker = _Maker(rng, exact=made.exact)
    if kinds in {"nft", "both"}:
        for number in range(rng.choice((1, 1, 1, 2))):
            made.parts.append(Part("nft", maker.nft_table(f"fz{number}")))
    if kinds != "nft":
        kind = "iptables-legacy" if kinds == "both" else kinds
        made.parts.append(Part(kind, maker.iptables_table()))
    return made


@final
class _Maker:
    """Makes rules."""

    def __init__(self, rng: random.Random, *, exact: bool) -> None:
        self._rng = rng
        self._exact = exact

    def _some(self, words: Sequence[str]) -> str:
        return self._rng.choice(words)

    def nft_table(self, name: str) -> str:
        rng = self._rng
        family = rng.choice(("inet", "inet", "inet", "inet", "inet", "ip", "ip6"))
        helpers = rng.sample(_ODD_NAMES, rng.randint(0, 3))
        helpers = [f"{helper}_{place}" for place, helper in enumerate(helpers)]
        chains = [
            self._chain(helper, "", helpers[place + 1 :]) for place, helper in enumerate(helpers)
        ]
        for number in range(rng.choice((1, 1, 1, 2, 3))):
            hook = rng.choice(_HOOKS)
            priority = rng.choice(_PRIORITIES[hook])
            policy = rng.choice(("accept", "accept", "drop"))
            head = f"type filter hook {hook} priority {priority}; policy {policy};"
            chains.append(self._chain(f"base{number}", head, helpers))
        if family == "inet" and rng.random() < 0.05:
            head = "type filter hook ingress device in0 priority 0; policy accept;"
            chains.append(self._chain("device", head, ()))
        states = ", ".join(rng.sample(_STATES, rng.randint(1, 3)))
        sets = (
            f"set wanted {{ type ct_state; elements = {{ {states} }}; }}",
            "set hosts4 { type ipv4_addr; flags interval,timeout; timeout 1h; "
            "elements = { 192.0.2.0/28, 10.0.0.0/8 timeout 10m }; }",
            "set pairs { type ipv4_addr . inet_service; elements = { 192.0.2.1 . 80 }; }",
            "set ports { type inet_service; flags interval; elements = { 80, 1000-2000 }; }",
            "set seen4 { type ipv4_addr; flags dynamic,timeout; size 99; }",
            "set seen6 { type ipv6_addr; flags dynamic; size 99; }",
            f"map verdicts {{ type ct_state : verdict; elements = {{ {self._pairs(())} }}; }}",
        )
        # Chains first: a map may lead to them.
        body = "\n".join((*sets, *chains))
        return f"table {family} {name} {{\n{body}\n}}\n"

    def _chain(self, name: str, head: str, targets: Sequence[str]) -> str:
        rules = [self._rule(targets) for _ in range(self._rng.randint(1, 5))]
        return "\n".join((f"chain {name} {{", *([head] if head else []), *rules, "}"))

    def _rule(self, targets: Sequence[str]) -> str:
        rng = self._rng
        words = [self._match() for _ in range(rng.choices((0, 1, 2, 3), (1, 5, 4, 1))[0])]
        if rng.random() < 0.3:
            words.append(self._statement())
        if not self._exact and rng.random() < 0.1:
            words.append(self._some(_LIMITS))
        kind = rng.random()
        if kind < 0.15:
            words.append(self._vmap(targets))
        elif kind < 0.2:
            inner = self._rule(()).replace("\n", " ")
            words.append(f"{rng.choice(('jump', 'goto'))} {{ {inner.partition(' comment')[0]}; }}")
            return " ".join(words)
        elif kind < 0.27:
            words.append("continue" if rng.random() < 0.3 else self._statement())
        else:
            words += ["counter", self._verdict(targets)]
        return " ".join(words) + self._some(_COMMENTS)

    def _verdict(self, targets: Sequence[str]) -> str:
        rng = self._rng
        if targets and rng.random() < 0.4:
            return f"{rng.choice(('jump', 'jump', 'goto'))} {rng.choice(targets)}"
        if rng.random() < 0.04:
            return "notrack"
        return self._some(_TERMINAL)

    def _match(self) -> str:
        kind = self._rng.random()
        if kind < 0.55:
            return self._state()
        if kind < 0.7:
            return self._some(_OF_ENTRY)
        if kind < 0.85 or self._exact:
            return self._some(_KNOWN)
        return self._some(_UNKNOWN)

    def _state(self) -> str:
        rng = self._rng
        some = rng.sample(_STATES, rng.randint(1, 3))
        comma, bar = ",".join(some), " | ".join(some)
        other = rng.choice(_STATES)
        spellings: list[Callable[[], str]] = [
            lambda: f"ct state {comma}",
            lambda: f"ct state {comma}",
            lambda: f"ct state != {comma}",
            lambda: f"ct state ! {comma}",
            lambda: f"ct state {{ {', '.join(some)} }}",
            lambda: f"ct state != {{ {', '.join(some)} }}",
            lambda: f"ct state & ({bar}) == 0",
            lambda: f"ct state & ({bar}) != 0",
            lambda: f"ct state & ({bar}) == {bar}",
            lambda: f"ct state and ({bar} | {other}) == {other}",
            lambda: f"ct state & {other} != {other}",
            lambda: f"ct state xor {other} == 0",
            lambda: f"ct state == {other}",
            lambda: f"ct state > {other}",
            lambda: f"ct state <= {other}",
            lambda: f"ct state {rng.choice(('0x1', '!= 0x1', '0x08,0x02', '0x41'))}",
            lambda: "ct state @wanted",
            lambda: "ct state != @wanted",
            lambda: f"ct state . meta l4proto {{ {other} . tcp, new . udp }}",
            lambda: f"ct state . meta l4proto != {{ {other} . tcp }}",
            lambda: f"meta l4proto . ct state {{ tcp . {other}, udp . invalid }}",
            lambda: f"ct state . ct direction {{ {other} . original }}",
        ]
        if not self._exact:
            spellings += [
                lambda: f'ct state . iifname {{ {other} . "in0", new . "eth0" }}',
                lambda: f'iifname . ct state != {{ "in0" . {other} }}',
                lambda: f"ct state . tcp dport {{ {other} . 80, invalid . 22 }}",
                lambda: f"ct state . tcp dport {{ {other} . 1-1023 }}",
            ]
        return rng.choice(spellings)()

    def _statement(self) -> str:
        return self._some(_MARKS if self._rng.random() < 0.3 else _STATEMENTS)

    def _pairs(self, targets: Sequence[str]) -> str:
        rng = self._rng
        some = rng.sample(_STATES, rng.randint(1, 4))
        return ", ".join(f"{state} : {self._map_verdict(targets)}" for state in some)

    def _map_verdict(self, targets: Sequence[str]) -> str:
        rng = self._rng
        if targets and rng.random() < 0.5:
            return f"{rng.choice(('jump', 'goto'))} {rng.choice(targets)}"
        return rng.choice(("drop", "accept", "accept", "continue", "return"))

    def _vmap(self, targets: Sequence[str]) -> str:
        rng = self._rng
        verdict = self._map_verdict(targets)
        other = rng.choice(_STATES)
        spellings = [
            f"ct state vmap {{ {self._pairs(targets)} }}",
            f"ct state vmap {{ {self._pairs(targets)} }}",
            "ct state vmap @verdicts",
            f"ct state vmap {{ {other} : accept, * : {verdict} }}",
            f"meta l4proto vmap {{ tcp : {verdict}, udp : drop }}",
            f"meta nfproto vmap {{ ipv4 : {verdict}, ipv6 : {self._map_verdict(targets)} }}",
            f"ct state . meta l4proto vmap {{ {other} . tcp : {verdict}, new . udp : drop }}",
            f"ct status vmap {{ assured : {verdict} }}",
        ]
        if not self._exact:
            spellings += [
                f'iifname vmap {{ "lo" : accept, "in0" : {verdict}, "eth0" : drop }}',
                f'iifname vmap {{ "eth0" : accept, * : {verdict} }}',
                f"tcp dport vmap {{ 22 : accept, 80 : {verdict} }}",
                f"tcp dport vmap {{ 1-79 : accept, 80-90 : {verdict} }}",
                f'ct state . iifname vmap {{ {other} . "in0" : {verdict} }}',
                f"numgen inc mod 2 vmap {{ 0 : {verdict}, 1 : {verdict} }}",
                f"meta mark vmap {{ 0 : {verdict}, 5 : drop }}",
            ]
        return rng.choice(spellings)

    def iptables_table(self) -> str:
        """A table, for both families."""
        rng = self._rng
        names = [f"{name}-{place}" for place, name in enumerate(rng.sample(_ODD_NAMES, 3))]
        names = [name for name in names if rng.random() < 0.6]
        table, base = rng.choice((("filter", "FORWARD"),) * 4 + (("security", "FORWARD"),))
        policy = rng.choice(("ACCEPT", "ACCEPT", "DROP"))
        lines = [f"*{table}", f":{base} {policy} [0:0]"]
        lines += [f":{name} - [0:0]" for name in names]
        for place, name in enumerate((base, *names)):
            for _ in range(rng.randint(1, 5)):
                lines.append(self._iptables_rule(name, names[place:], table))
        return "\n".join((*lines, "COMMIT", ""))

    def _iptables_rule(self, chain: str, targets: Sequence[str], table: str) -> str:
        rng = self._rng
        words = [f"-A {chain}"]
        count = rng.choices((0, 1, 2), (1, 5, 3))[0]
        words += dict.fromkeys(self._iptables_match() for _ in range(count))
        if not self._exact and rng.random() < 0.1:
            words.append(self._some(_IPTABLES_LIMITS))
        if sum(word.startswith(("-p ", "! -p ")) for word in words) > 1:
            words = [word for word in words if not word.startswith(("-p ", "! -p "))]
        if sum(word.startswith(("-i ", "! -i ")) for word in words) > 1:
            words = [word for word in words if not word.startswith(("-i ", "! -i "))]
        if rng.random() < 0.15:
            words.append(self._some(_IPTABLES_GO_ON))
        elif targets and rng.random() < 0.4:
            words.append(f"{rng.choice(('-j', '-j', '-g'))} {rng.choice(targets)}")
        else:
            verdict = self._some(_IPTABLES_TERMINAL)
            if "REJECT" in verdict and (
                table != "filter" or any(word.startswith(("-p", "! -p")) for word in words)
            ):
                verdict = "-j DROP"
            words.append(verdict)
        return " ".join(words)

    def _iptables_match(self) -> str:
        rng = self._rng
        kind = rng.random()
        if kind < 0.55:
            some = ",".join(rng.sample(_IPTABLES_STATES, rng.randint(1, 3)))
            return rng.choice(
                (
                    f"-m conntrack --ctstate {some}",
                    f"-m conntrack ! --ctstate {some}",
                    f"-m state --state {some}",
                    f"-m state ! --state {some}",
                    f"-m conntrack --ctstate {some},DNAT",
                    f"-m conntrack --ctstate {some} --ctproto 6",
                    f"-m conntrack ! --ctstate {some} --ctstatus ASSURED",
                )
            )
        if kind < 0.7:
            return self._some(_IPTABLES_ENTRY)
        if kind < 0.85 or self._exact:
            return self._some(_IPTABLES_KNOWN)
        return self._some(_IPTABLES_UNKNOWN)
