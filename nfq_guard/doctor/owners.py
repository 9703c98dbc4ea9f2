# SPDX-License-Identifier: MIT
"""Programs whose rules drop or divert INVALID packets, and how to configure each.

A program is recognised by the names of its chains and tables, or by its log prefixes and comments.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple, final

from nfq_guard.doctor.follow import Finding
from nfq_guard.doctor.rule_model import Act, Table


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
        prefixes: Prefixes of the names of its chains or tables.
        words: Texts in its comments and log prefixes.
        claims: The built-in chains to which it adds rules and policies that cannot be recognised.
    """

    id: str
    name: str
    invalid: str
    denied: str = ""
    policy: str = ""
    untracked: str = ""
    prefixes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    claims: frozenset[str] = frozenset()


_KEEP_DENY: Final = (
    "keep it; to let packets of some flow through, accept INVALID packets by its addresses and "
    "ports before it, in its own chain"
)
_FILTER: Final = frozenset({"INPUT", "FORWARD", "OUTPUT"})
_KEEP: Final = "keep it, and expect the same packets to be dropped whatever the policy allows"

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

OWNERS: Final = (
    Owner(
        "kube-proxy",
        "kube-proxy",
        f"{_KEEP}: kube-proxy omits the rule only from 1.29 on with --conntrack-tcp-be-liberal "
        "(conntrack.tcpBeLiberal), which blinds the guard to windows, or from 1.30 on in nftables "
        "mode",
        prefixes=("KUBE-FORWARD", "KUBE-SERVICES", "KUBE-PROXY", "kube-proxy"),
    ),
    Owner(
        "kubelet",
        "kubelet",
        "keep it: it closes 127.0.0.0/8 to other hosts",
        prefixes=("KUBE-FIREWALL",),
    ),
    Owner(
        "kube-router",
        "kube-router",
        f"{_KEEP}: kube-router has no switch for it but --run-firewall=false, which also ends "
        "network policies",
        prefixes=("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"),
        words=("kube-router",),
    ),
    Owner(
        "istio",
        "Istio",
        "install the sidecar without INVALID_DROP (in proxyMetadata, or --drop-invalid of "
        "istio-iptables), and let the guard decide",
        prefixes=("ISTIO_", "istio-"),
    ),
    Owner(
        "calico",
        "Calico",
        "set disableConntrackInvalidCheck: true in FelixConfiguration, and let the guard decide",
        untracked="set bpfHostConntrackBypass: false in FelixConfiguration, and conntrack sees "
        "whole connections",
        prefixes=("cali-", "calico"),
    ),
    Owner(
        "cilium",
        "Cilium",
        "see Cilium's own drops with `cilium-dbg monitor --type drop` (before 1.15 `cilium "
        "monitor`): its BPF programs track connections beside conntrack",
        untracked="keep it: it is for the packets of Cilium's proxy",
        prefixes=("CILIUM_", "OLD_CILIUM_", "cilium"),
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
        prefixes=("DOCKER", "docker-bridges"),
        claims=frozenset({"FORWARD"}),
    ),
    Owner(
        "ufw",
        "ufw",
        "remove it from /etc/ufw/before.rules (before6.rules), and let the guard decide",
        "keep it; DEFAULT_FORWARD_POLICY and DEFAULT_INPUT_POLICY in /etc/default/ufw set it",
        prefixes=("ufw-", "ufw6-"),
        claims=_FILTER,
    ),
    Owner(
        "firewalld",
        "firewalld",
        f"{_KEEP}: firewalld has no option to disable it",
        "keep it; the target of the zone decides (`firewall-cmd --zone=ZONE --set-target=DROP "
        "--permanent` drops in silence)",
        prefixes=(
            "firewalld",
            "INPUT_ZONES",
            "INPUT_POLICIES_",
            "INPUT_dispatch",
            "FORWARD_ZONES",
            "FORWARD_POLICIES_",
            "FORWARD_dispatch",
            "FORWARD_IN_ZONES",
            "FORWARD_OUT_ZONES",
        ),
        claims=_FILTER,
    ),
    Owner(
        "fw4",
        "OpenWrt fw4",
        _DROP_INVALID,
        _REJECTS,
        prefixes=("fw4",),
        words=("!fw4",),
    ),
    Owner(
        "fw3",
        "OpenWrt fw3",
        _DROP_INVALID,
        _REJECTS,
        words=("!fw3",),
        claims=_FILTER,
    ),
    Owner(
        "ipfire",
        "IPFire",
        f"{_KEEP}: its firewall options only have a switch for the log (LOGDROPCTINVALID)",
        prefixes=("CTINVALID", "POLICYFWD", "POLICYIN", "FORWARDFW", "INPUTFW"),
        words=("DROP_CTINVALID",),
        claims=_FILTER | {"CONNTRACK", "CTINPUT", "CTOUTPUT"},
    ),
    Owner(
        "vyatta",
        "EdgeOS or VyOS 1.3",
        "delete the rule with `state invalid` of that rule set, or in VyOS 1.3 run `delete "
        "firewall state-policy invalid`, and let the guard decide",
        prefixes=("VYATTA_",),
        claims=_FILTER,
    ),
    Owner(
        "firewalla",
        "Firewalla",
        f"{_KEEP}: it has no switch for it",
        prefixes=("FW_FIREWALL", "FW_WAN_IN"),
        claims=_FILTER | {"FW_FORWARD", "FW_INPUT_DROP"},
    ),
    Owner(
        "mwan3",
        "mwan3",
        "keep it",
        prefixes=("mwan3",),
    ),
    Owner(
        "csf",
        "CSF",
        'set PACKET_FILTER = "0" in /etc/csf/csf.conf, which also ends its checks of TCP flags, '
        "and let the guard decide",
        prefixes=("INVDROP", "LOGDROPIN", "LOGDROPOUT", "LOCALINPUT", "LOCALOUTPUT"),
        claims=_FILTER | {"INVALID", "DENYIN", "DENYOUT"},
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
            "IN-unknown:",
            "OUT-unknown:",
            "PASS-unknown:",
        ),
        claims=_FILTER,
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
        prefixes=("shorewall",),
        words=("Shorewall:",),
        claims=_FILTER,
    ),
    Owner(
        "arno",
        "arno-iptables-firewall",
        f"{_KEEP}: arno-iptables-firewall has no option for it. Rules of FORWARD_CHAIN and "
        "INPUT_CHAIN in /etc/arno-iptables-firewall/custom-rules run before it, and can accept "
        "INVALID packets of some flow by its addresses and ports",
        "keep it; to let packets of some flow through, accept INVALID packets by its addresses and "
        "ports in FORWARD_CHAIN or INPUT_CHAIN, in /etc/arno-iptables-firewall/custom-rules",
        prefixes=("VALID_CHK", "POST_INPUT_DROP_CHAIN", "EXT_INPUT_CHAIN", "BASE_INPUT_CHAIN"),
        words=("AIF:",),
        claims=_FILTER,
    ),
    Owner(
        "apf",
        "APF",
        'set PKT_SANITY_INV="0" in conf.apf, and let the guard decide',
        prefixes=("IN_SANITY", "OUT_SANITY", "TGALLOW", "TGDENY"),
        claims=_FILTER,
    ),
    Owner(
        "uif",
        "uif",
        "accept packets by lines of slin+, slfw+ and slout+ in section stateless of "
        "/etc/uif/uif.conf, and let the guard decide on those",
        prefixes=("STATELESSINPUT", "STATELESSFORWARD", "STATELESSOUTPUT", "STATENOTNEW"),
    ),
    Owner(
        "network-manager",
        "NetworkManager",
        _KEEP,
        "keep it: it closes a shared network (ipv4.method shared). firewall-backend=none in "
        "NetworkManager.conf omits it, and with it the network's masquerade",
        prefixes=("nm-sh",),
    ),
    Owner(
        "pve",
        "Proxmox VE",
        "set nf_conntrack_allow_invalid: 1 in /etc/pve/nodes/NODE/host.fw, and let the guard "
        "decide",
        prefixes=("PVEFW-FORWARD", "proxmox-firewall"),
    ),
    Owner(
        "pve",
        "Proxmox VE",
        f"{_KEEP}: nf_conntrack_allow_invalid in host.fw omits only the rule of PVEFW-FORWARD",
        prefixes=("PVEFW-",),
        claims=_FILTER,
    ),
    Owner(
        "vyos",
        "VyOS",
        "run `delete firewall global-options state-policy invalid`, or delete the rule with "
        "`state invalid` of that chain, and let the guard decide",
        prefixes=("vyos_", "VYOS_"),
    ),
    Owner(
        "fail2ban",
        "fail2ban",
        "keep it: it stops banned addresses",
        prefixes=("f2b-",),
    ),
    Owner(
        "netavark",
        "Podman (netavark)",
        f"{_KEEP}: it stops untranslated packets of containers from leaving, and netavark has no "
        'switch for it but firewall_driver = "none" in containers.conf, which ends port forwarding',
        prefixes=("NETAVARK", "netavark"),
    ),
    Owner(
        "nixos",
        "the NixOS firewall",
        f"{_KEEP}: networking.firewall has no option for it",
        "keep it; networking.firewall.extraCommands adds accepts before it",
        prefixes=("nixos-",),
    ),
    Owner(
        "foomuuri",
        "Foomuuri",
        "accept packets in a section `invalid` of /etc/foomuuri/*.conf, and let the guard decide "
        "on those",
        prefixes=("foomuuri",),
    ),
    Owner(
        "unifi",
        "UniFi",
        f"{_KEEP}: UniFi Network installs it as a built-in policy (Block Invalid Traffic)",
        prefixes=("UBIOS_",),
    ),
    Owner(
        "antrea",
        "Antrea",
        f"{_KEEP}: it belongs to a network policy",
        prefixes=("ANTREA-", "antrea"),
    ),
    Owner(
        "neutron",
        "OpenStack Neutron",
        f"{_KEEP}: it belongs to the security group of a port, and has no switch but disabling "
        "port security, which ends all of its rules",
        prefixes=("neutron-",),
    ),
    Owner(
        "weave",
        "Weave Net",
        _KEEP,
        "keep it: it belongs to network policies (EXPECT_NPC=0 of weave-net ends those)",
        prefixes=("WEAVE",),
        words=("-o weave ",),
    ),
    Owner(
        "incus",
        "Incus or LXD",
        _KEEP,
        "keep it: it belongs to an ACL of the network (security.acls), which accepts known "
        "connections and what its rules allow by addresses and ports",
        prefixes=("aclfwd.", "aclin.", "aclout.", "acl.", "incus", "lxd"),
    ),
    Owner("cni", "a CNI plugin", "keep it", prefixes=("CNI-", "FLANNEL-")),
    Owner("libvirt", "libvirt", "keep it", prefixes=("LIBVIRT_", "libvirt_network", "libvirt-")),
    Owner(
        "tailscale", "Tailscale", "keep it", prefixes=("ts-input", "ts-forward", "ts-postrouting")
    ),
)


def owner_of(finding: Finding) -> Owner:
    """The owner of a rule, by the chains that lead to it, the nearest first, and by its texts."""
    if SYNPROXY.id in _present(finding.table):
        chains = finding.table.synproxied
        if not chains.isdisjoint((finding.chain, *finding.path)):
            return SYNPROXY
    for leakage in _LEAKAGES:
        if _any_word([finding.rule.text], leakage):
            return leakage
    for name in (finding.chain, *finding.path, finding.rule.target, finding.table.name):
        for owner in OWNERS:
            if name.startswith(owner.prefixes or ("\0",)):
                return owner
    for owner in OWNERS:
        if any(word in finding.rule.text for word in owner.words):
            return owner
    return _claimant(finding) or PLAIN


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
    """The program whose rules surround a rule in a chain whose name does not identify it."""
    if finding.table.filter == "nftables":
        return None
    present = _present(finding.table)
    for owner in OWNERS:
        if owner.id in present and not owner.claims.isdisjoint((finding.chain, *finding.path)):
            return owner
    return None


def _present(table: Table) -> set[str]:
    """The programs with rules in a table that claim built-in chains, and SYNPROXY."""
    present = table.present
    if not present:
        rules = [rule for each in table.chains.values() for rule in each]
        names, texts = list(table.chains), [rule.text for rule in rules]
        present |= {
            owner.id
            for owner in OWNERS
            if owner.claims and (_any_name(names, owner) or _any_word(texts, owner))
        }
        if any("SYNPROXY" in rule.target for rule in rules):
            present.add(SYNPROXY.id)
            table.synproxied.update(_synproxied(table))
        present.add(PLAIN.id)
    return present


def _any_name(names: Iterable[str], owner: Owner) -> bool:
    return bool(owner.prefixes) and any(name.startswith(owner.prefixes) for name in names)


def _any_word(texts: Iterable[str], owner: Owner) -> bool:
    return any(word in text for text in texts for word in owner.words)


def _synproxied(table: Table) -> set[str]:
    """The chains that hand packets to SYNPROXY, or lead to one that does."""
    from_chains: dict[str, list[str]] = {}
    waiting: list[str] = []
    for chain, rules in table.chains.items():
        for rule in rules:
            if rule.act in {Act.JUMP, Act.GOTO}:
                from_chains.setdefault(rule.target, []).append(chain)
            elif rule.act is Act.ELSEWHERE and rule.target == SYNPROXY.name:
                waiting.append(chain)
    found: set[str] = set()
    while waiting:
        chain = waiting.pop()
        if chain not in found:
            found.add(chain)
            waiting += from_chains.get(chain, ())
    return found
