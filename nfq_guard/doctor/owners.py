# SPDX-License-Identifier: MIT
"""Programs whose rules drop or divert INVALID packets, and how to configure each.

A program is recognised by the names of its chains and tables, or by its log prefixes and comments.
In the built-in chains of iptables anyone has rules: there only rules of the forms that a program
writes are given to it.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, final

from nfq_guard.doctor.follow import Finding
from nfq_guard.doctor.rule_model import PRIORITIES, Act, Rule, Table, Truth


@final
class Owner(NamedTuple):
    """A program that installs rules.

    Attributes:
        id: Suffix of the check's id.
        name: Display name.
        invalid: The recommended action on its rules for INVALID packets.
        denied: The recommended action on its default deny, where a separate switch controls it.
        policy: The recommended action on the policy of a built-in chain, if it differs.
        untracked: The recommended action on its rules that hide one direction from conntrack.
        names: Names of its chains and tables; one that ends in a separator is a prefix.
        words: Beginnings of its comments and log prefixes.
        marked: Whether each of its rules has such a comment, so that another one in its table is
            not its own.
        policies: The built-in chains of which it sets the policy.
        chains: A pattern for the names of its chains that others use too; they are its own where it
            has other rules.
        rules: A pattern for its rules in chains that others use too: the chain and the rule.
    """

    id: str
    name: str
    invalid: str
    denied: str = ""
    policy: str = ""
    untracked: str = ""
    names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    marked: bool = False
    policies: frozenset[str] = frozenset()
    chains: str = ""
    rules: str = ""


_KEEP_DENY: Final = (
    "keep it; to let packets of some flow through, accept INVALID packets by its addresses and "
    "ports before it, in its own chain"
)
_FILTER: Final = frozenset({"INPUT", "FORWARD", "OUTPUT"})
_KEEP: Final = "keep it, and expect it to take the same packets whatever the policy allows"
_INVALID: Final = "-m conntrack --ctstate INVALID"

PLAIN: Final = Owner(
    "plain",
    "a plain rule",
    "find out what installs it and what it protects: a program would put it back. The guard's "
    "policy can decide in its place if it is a rule of your own, for INVALID packets only",
)

SYNPROXY: Final = Owner(
    "synproxy",
    "SYNPROXY",
    "leave it and tcp_loose=0 as they are: SYNPROXY answers the INVALID ACK that ends a handshake, "
    "and the rule drops what it did not answer",
)

_LEAKAGES: Final = tuple(
    Owner(
        program,
        f"OpenWrt {program}",
        "keep it: it stops private addresses from leaving, as the preset no-leak does "
        "(`option masq_allow_invalid '1'` of the zone omits it)",
        words=(f"!{program}: Prevent NAT leakage",),
    )
    for program in ("fw3", "fw4")
)
_DROP_INVALID: Final = (
    "set `option drop_invalid '0'` in /etc/config/firewall, and let the guard decide; zones with "
    "`option masq '1'` then drop what would leave untranslated"
)
_REJECTS: Final = (
    "set `option input`, `option forward` to DROP in /etc/config/firewall: REJECT answers TCP "
    "with an RST, DROP only loses the packet"
)

_UNMATCHED: Final = ("", "DROP UNMATCHED ", "REJECT UNMATCHED ")
"""What FireHOL logs before a packet that no rule accepts."""

OWNERS: Final = (
    Owner(
        "kube-proxy",
        "kube-proxy",
        f"{_KEEP}: kube-proxy omits the rule only from 1.29 on with --conntrack-tcp-be-liberal "
        "(conntrack.tcpBeLiberal), which blinds the guard to windows, or from 1.30 on in nftables "
        "mode",
        names=("KUBE-FORWARD", "KUBE-SERVICES", "KUBE-PROXY-", "kube-proxy"),
    ),
    Owner(
        "kubelet",
        "kubelet",
        "keep it: it closes 127.0.0.0/8 to other hosts",
        names=("KUBE-FIREWALL",),
    ),
    Owner(
        "kube-router",
        "kube-router",
        f"{_KEEP}: kube-router has no switch for it but --run-firewall=false, which also ends "
        "network policies",
        names=("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"),
        words=("kube-router ",),
    ),
    Owner(
        "istio",
        "Istio",
        "install the sidecar without INVALID_DROP (in proxyMetadata, or --drop-invalid of "
        "istio-iptables), and let the guard decide",
        names=("ISTIO_", "istio-"),
    ),
    Owner(
        "calico",
        "Calico",
        "set disableConntrackInvalidCheck: true in FelixConfiguration, and let the guard decide",
        untracked="set bpfHostConntrackBypass: false in FelixConfiguration, and conntrack sees "
        "whole connections",
        names=("cali-", "calico"),
    ),
    Owner(
        "cilium",
        "Cilium",
        "see Cilium's own drops with `cilium-dbg monitor --type drop` (before 1.15 `cilium "
        "monitor`): its BPF programs track connections beside conntrack",
        untracked="keep it: it is for the packets of Cilium's proxy",
        names=("CILIUM_", "OLD_CILIUM_", "cilium", "cilium_", "cilium-"),
    ),
    Owner(
        "docker",
        "Docker",
        _KEEP,
        "keep it: it closes the ports that are not published. To let INVALID packets of some flow "
        "through, accept them by its addresses and ports in chain DOCKER-USER, or from Docker 29 "
        "on mark them and set bridge-accept-fwmark in daemon.json",
        'keep it, or from Docker 28 on set "ip-forward-no-drop": true in daemon.json, which leaves '
        "the policy of FORWARD alone; rules for ports that are not published stay",
        names=("DOCKER", "DOCKER-", "docker-bridges"),
        policies=frozenset({"FORWARD"}),
        rules=r"FORWARD -i (\S+) -o \1 -j DROP",
    ),
    Owner(
        "ufw",
        "ufw",
        "remove it from /etc/ufw/before.rules (before6.rules), and let the guard decide",
        "keep it; DEFAULT_FORWARD_POLICY and DEFAULT_INPUT_POLICY in /etc/default/ufw set it",
        names=("ufw-", "ufw6-"),
        policies=_FILTER,
    ),
    Owner(
        "firewalld",
        "firewalld",
        f"{_KEEP}: firewalld has no option to disable it",
        "keep it; the target of the zone decides (`firewall-cmd --zone=ZONE --set-target=DROP "
        "--permanent` drops in silence)",
        names=(
            "firewalld",
            "INPUT_ZONES",
            "INPUT_ZONES_",
            "INPUT_POLICIES_",
            "INPUT_dispatch",
            "FORWARD_ZONES",
            "FORWARD_ZONES_",
            "FORWARD_POLICIES_",
            "FORWARD_dispatch",
            "FORWARD_IN_ZONES",
            "FORWARD_IN_ZONES_",
            "FORWARD_OUT_ZONES",
            "FORWARD_OUT_ZONES_",
        ),
        rules=rf"(INPUT|FORWARD) ({_INVALID} -j DROP|-j REJECT --reject-with icmp6?-\S+)",
    ),
    Owner(
        "fw4",
        "OpenWrt fw4",
        _DROP_INVALID,
        _REJECTS,
        names=("fw4",),
        words=("!fw4",),
        marked=True,
    ),
    Owner(
        "fw3",
        "OpenWrt fw3",
        _DROP_INVALID,
        _REJECTS,
        words=("!fw3",),
        policies=_FILTER,
    ),
    Owner(
        "ipfire",
        "IPFire",
        f"{_KEEP}: its firewall options only have a switch for the log (LOGDROPCTINVALID)",
        names=("CTINVALID", "POLICYFWD", "POLICYIN", "FORWARDFW", "INPUTFW"),
        words=("DROP_CTINVALID",),
        policies=_FILTER,
        chains="CONNTRACK|CTINPUT|CTOUTPUT",
    ),
    Owner(
        "vyatta",
        "EdgeOS or VyOS 1.3",
        "delete the rule with `state invalid` of that rule set, or in VyOS 1.3 run `delete "
        "firewall state-policy invalid`, and let the guard decide",
        names=("VYATTA_",),
    ),
    Owner(
        "firewalla",
        "Firewalla",
        f"{_KEEP}: it has no switch for it",
        names=("FW_FIREWALL", "FW_FIREWALL_", "FW_WAN_IN", "FW_WAN_IN_", "FW_WAN_INVALID_DROP"),
        chains="FW_FORWARD|FW_INPUT_DROP",
        rules=f"FORWARD {_INVALID} -j DROP",
    ),
    Owner(
        "mwan3",
        "mwan3",
        "keep it",
        names=("mwan3", "mwan3_"),
    ),
    Owner(
        "csf",
        "CSF",
        'set PACKET_FILTER = "0" in /etc/csf/csf.conf, which also ends its checks of TCP flags, '
        "and let the guard decide",
        names=("INVDROP", "LOGDROPIN", "LOGDROPOUT", "LOCALINPUT", "LOCALOUTPUT"),
        policies=_FILTER,
        chains="INVALID|DENYIN|DENYOUT",
    ),
    Owner(
        "firehol",
        "FireHOL",
        f"{_KEEP}: without it (FIREHOL_DROP_INVALID=0 and each FIREHOL_DROP_ORPHAN_ setting 0 in "
        "firehol-defaults.conf) UNMATCHED_INPUT_POLICY and UNMATCHED_ROUTER_POLICY drop them",
        "keep it; UNMATCHED_INPUT_POLICY, UNMATCHED_ROUTER_POLICY and UNMATCHED_OUTPUT_POLICY in "
        "firehol-defaults.conf set it",
        words=(
            "BLOCKED INVALID",
            "DROP INVALID INPUT:",
            "DROP INVALID FORWARD:",
            "DROP INVALID OUTPUT:",
            *(f"{how}{end}-unknown:" for how in _UNMATCHED for end in ("IN", "OUT", "PASS")),
        ),
        policies=_FILTER,
        rules=(
            r"(INPUT|FORWARD|OUTPUT|(in|out)_\S+) ((-p tcp -m tcp --tcp-flags \S+ \S+ )?"
            rf"{_INVALID}(,NEW)? -j DROP|-j DROP|-j REJECT.*)"
        ),
    ),
    Owner(
        "shorewall",
        "Shorewall",
        "remove Invalid(DROP) from /etc/shorewall/rules and dropInvalid from the actions "
        "DROP_DEFAULT and REJECT_DEFAULT of shorewall.conf, leave INVALID_DISPOSITION=CONTINUE, "
        "and accept in section INVALID of the rules what the guard is to decide on: else the "
        "policy drops it",
        "keep it, or change REJECT to DROP in /etc/shorewall/policy: REJECT answers TCP with an "
        "RST",
        names=("shorewall",),
        words=("Shorewall:",),
        policies=_FILTER,
        chains=(
            r"[_~]?\w+[-2]\w+|\w+_(frwd|fwd|in|out)|reject|dynamic|smurfs|smurflog|tcpflags"
            r"|log(flags|drop|reject)|blacklst|Drop|Reject|(drop|reject)[A-Z]\w*"
        ),
        rules="(INPUT|FORWARD|OUTPUT) -j (DROP|REJECT.*)",
    ),
    Owner(
        "arno",
        "arno-iptables-firewall",
        f"{_KEEP}: arno-iptables-firewall has no option for it. Rules of FORWARD_CHAIN and "
        "INPUT_CHAIN in /etc/arno-iptables-firewall/custom-rules run before it, and can accept "
        "INVALID packets of some flow by its addresses and ports",
        "keep it; to let packets of some flow through, accept INVALID packets by its addresses and "
        "ports in FORWARD_CHAIN or INPUT_CHAIN, in /etc/arno-iptables-firewall/custom-rules",
        names=("VALID_CHK", "POST_INPUT_DROP_CHAIN", "EXT_INPUT_CHAIN", "BASE_INPUT_CHAIN"),
        words=("AIF:",),
        policies=_FILTER,
        rules="(INPUT|FORWARD|OUTPUT) -j DROP",
    ),
    Owner(
        "apf",
        "APF",
        'set PKT_SANITY_INV="0" in conf.apf, and let the guard decide',
        names=("IN_SANITY", "OUT_SANITY", "TGALLOW", "TGDENY"),
        rules=r"(INPUT|OUTPUT) (-p \w+ )?-j (DROP|REJECT.*)",
    ),
    Owner(
        "uif",
        "uif",
        "accept packets by lines of slin+, slfw+ and slout+ in section stateless of "
        "/etc/uif/uif.conf, and let the guard decide on those",
        names=("STATELESSINPUT", "STATELESSFORWARD", "STATELESSOUTPUT", "STATENOTNEW"),
    ),
    Owner(
        "network-manager",
        "NetworkManager",
        _KEEP,
        "keep it: it closes a shared network (ipv4.method shared). firewall-backend=none in "
        "NetworkManager.conf omits it, and with it the network's masquerade",
        names=("nm-sh-", "nm-shared-"),
    ),
    Owner(
        "pve",
        "Proxmox VE",
        "set nf_conntrack_allow_invalid: 1 in /etc/pve/nodes/NODE/host.fw, and let the guard "
        "decide",
        names=("PVEFW-FORWARD", "proxmox-firewall", "proxmox-firewall-guests"),
    ),
    Owner(
        "pve",
        "Proxmox VE",
        f"{_KEEP}: nf_conntrack_allow_invalid in host.fw omits only the rule of PVEFW-FORWARD",
        names=("PVEFW-",),
    ),
    Owner(
        "vyos",
        "VyOS",
        "run `delete firewall global-options state-policy invalid`, or delete the rule with "
        "`state invalid` of that chain, and let the guard decide",
        names=("vyos_", "VYOS_"),
    ),
    Owner(
        "fail2ban",
        "fail2ban",
        "keep it: it stops banned addresses",
        names=("f2b-",),
    ),
    Owner(
        "netavark",
        "Podman (netavark)",
        f"{_KEEP}: it stops untranslated packets of containers from leaving, and netavark has no "
        'switch for it but firewall_driver = "none" in containers.conf, which ends port forwarding',
        names=("NETAVARK_", "NETAVARK-", "netavark"),
    ),
    Owner(
        "nixos",
        "the NixOS firewall",
        f"{_KEEP}: networking.firewall has no option for it",
        "keep it; networking.firewall.extraCommands adds accepts before it",
        names=("nixos-",),
    ),
    Owner(
        "foomuuri",
        "Foomuuri",
        "accept packets in a section `invalid` of /etc/foomuuri/*.conf, and let the guard decide "
        "on those",
        names=("foomuuri",),
    ),
    Owner(
        "unifi",
        "UniFi",
        f"{_KEEP}: UniFi Network installs it as a built-in policy (Block Invalid Traffic)",
        names=("UBIOS_",),
    ),
    Owner(
        "antrea",
        "Antrea",
        f"{_KEEP}: it belongs to a network policy",
        names=("ANTREA-", "antrea", "antrea-"),
    ),
    Owner(
        "neutron",
        "OpenStack Neutron",
        f"{_KEEP}: it belongs to the security group of a port, and has no switch but disabling "
        "port security, which ends all of its rules",
        names=("neutron-",),
    ),
    Owner(
        "weave",
        "Weave Net",
        _KEEP,
        "keep it: it belongs to network policies (EXPECT_NPC=0 of weave-net ends those)",
        names=("WEAVE", "WEAVE-"),
        rules="FORWARD -o weave -j (DROP|REJECT.*)",
    ),
    Owner(
        "incus",
        "Incus or LXD",
        _KEEP,
        "keep it: it belongs to an ACL of the network (security.acls), which accepts known "
        "connections and what its rules allow by addresses and ports",
        names=("incus", "lxd", "incus_acl", "incus_acl_", "lxd_acl", "lxd_acl_"),
    ),
    Owner("cni", "a CNI plugin", "keep it", names=("CNI-", "FLANNEL-")),
    Owner("libvirt", "libvirt", "keep it", names=("LIBVIRT_", "libvirt_network", "libvirt-")),
    Owner("tailscale", "Tailscale", "keep it", names=("ts-input", "ts-forward", "ts-postrouting")),
)


_OF_USERS: Final = frozenset({"DOCKER-USER"})
"""Chains that a program makes for the rules of others."""
_TEXT: Final = re.compile(
    r'(?:--comment|--log-prefix|(?<!\S)(?<!-m )comment|(?<!\S)log prefix) (?:"([^"]*)|([^"\s]\S*))'
)


def owner_of(finding: Finding) -> Owner:
    """The owner of a rule, by the chains that lead to it, the nearest first, and by its texts."""
    if SYNPROXY.id in _present(finding.table) and _is_behind_synproxy(finding):
        return SYNPROXY
    words = _words([finding.rule.text])
    marking = [owner for owner in (*_LEAKAGES, *OWNERS) if _has_any(words, owner)]
    if marking and marking[0] in _LEAKAGES:
        return marking[0]
    of_users = False
    for name in (finding.chain, *finding.path, finding.rule.target, finding.table.name):
        of_users = of_users or name in _OF_USERS
        if of_users:
            break
        for owner in OWNERS:
            if _is_name(name, owner) and (not owner.marked or _may_be_marked(finding, marking)):
                return owner
    if marking:
        return marking[0]
    return (None if of_users else _claimant(finding)) or PLAIN


def place(finding: Finding) -> str:
    """The table and chain of a rule, with its owner where that is known."""
    owner = owner_of(finding)
    name = "" if owner is PLAIN else f"; {owner.name}"
    return f"{finding.table.filter} table {finding.table.name}, chain {finding.chain}{name}"


def todo_untracked(text: str) -> str:
    """The recommended action on a rule that hides one direction, from a text with its `place`."""
    for owner in OWNERS:
        if f"; {owner.name})" in text:
            return owner.untracked or f"keep it: {owner.name} would put it back"
    return "have a rule treat the other direction in the same way, or remove this one"


def todo(finding: Finding) -> str:
    """The recommended action on a rule that takes INVALID packets away."""
    owner = owner_of(finding)
    if finding.state or owner is SYNPROXY:
        return owner.invalid
    policy = owner.policy if finding.default else ""
    return policy or owner.denied or _KEEP_DENY


def _claimant(finding: Finding) -> Owner | None:
    """The program that writes such rules, or sets such policies, into chains of others' too."""
    if finding.table.filter == "nftables" and finding.table.name not in PRIORITIES:
        return None
    present = _present(finding.table)
    found = [owner for owner in OWNERS if owner.id in present and _claims(owner, finding)]
    # Docker sets the policy only where it finds forwarding off, the others whenever they load.
    return min(found, key=lambda owner: owner.id == "docker", default=None)


def _claims(owner: Owner, finding: Finding) -> bool:
    if finding.default:
        return finding.chain in owner.policies
    if any(re.fullmatch(owner.chains, name) for name in (finding.chain, *finding.path)):
        return True
    return re.fullmatch(owner.rules, f"{finding.chain} {finding.rule.text}") is not None


def _present(table: Table) -> set[str]:
    """The programs with rules in a table that have some in chains of others, and SYNPROXY."""
    present = table.present
    if not present:
        rules = [rule for each in table.chains.values() for rule in each]
        words = _words(rule.text for rule in rules)
        present |= {
            owner.id
            for owner in OWNERS
            if (owner.policies or owner.chains or owner.rules)
            and (any(_is_name(name, owner) for name in table.chains) or _has_any(words, owner))
        }
        if any("SYNPROXY" in rule.target for rule in rules):
            present.add(SYNPROXY.id)
        present.add(PLAIN.id)
    return present


def _is_name(name: str, owner: Owner) -> bool:
    return any(
        name == each or (each.endswith(("-", "_")) and name.startswith(each))
        for each in owner.names
    )


def _words(texts: Iterable[str]) -> list[str]:
    """The comments and log prefixes of rules."""
    return [found[1] or found[2] or "" for text in texts for found in _TEXT.finditer(text)]


def _has_any(words: Iterable[str], owner: Owner) -> bool:
    return bool(owner.words) and any(word.startswith(owner.words) for word in words)


def _may_be_marked(finding: Finding, marking: Iterable[Owner]) -> bool:
    """Whether a rule in the table of a program that marks its rules may be its own."""
    policy = finding.default and finding.chain in {"input", "forward", "output"}
    return policy or any(owner.marked for owner in marking) or finding.rule.text.endswith("...")


def _is_behind_synproxy(finding: Finding) -> bool:
    """Whether an earlier rule of the base chain, or the rule itself, leads to SYNPROXY."""
    base = (finding.path or (finding.chain,))[-1]
    for rule in _in_order(finding.table, base, {base}):
        if rule.act is Act.ELSEWHERE and "SYNPROXY" in rule.target:
            if rule.when.truth is not Truth.NO:
                return True
        elif rule is finding.rule:
            return False
    return False


def _in_order(table: Table, chain: str, seen: set[str]) -> Iterator[Rule]:
    """The rules of a chain and of those to which it jumps, each chain once."""
    for rule in table.chains.get(chain, ()):
        yield rule
        if rule.act in {Act.JUMP, Act.GOTO} and rule.target not in seen:
            seen.add(rule.target)
            yield from _in_order(table, rule.target, seen)
