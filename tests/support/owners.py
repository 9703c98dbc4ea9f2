# SPDX-License-Identifier: MIT
"""Renders docs/owners.md: loads rule sets in the style of each program, and runs the doctor.

`python -m tests.support.owners` writes the page anew, as root.
"""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final

from nfq_guard.cli import main
from nfq_guard.lab.netns import Namespace

TREE: Final = Path(__file__).parents[2]
PAGE: Final = TREE / "docs" / "owners.md"
RULES: Final = TREE / "tests" / "doctor" / "rules"

SETS: Final = (
    ("kube-proxy", "kube-proxy.rules"),
    ("kube-proxy, nftables", "kube-proxy.nft"),
    ("kube-router", "kube-router.rules"),
    ("Istio", "istio.rules"),
    ("Istio, nftables", "istio.nft"),
    ("Istio, ambient", "istio-ambient.rules"),
    ("Calico, iptables", "calico.rules"),
    ("Calico, nftables", "calico.nft"),
    ("Calico, eBPF", "calico-bpf.rules"),
    ("Cilium", "cilium.rules"),
    ("Antrea", "antrea.rules"),
    ("Weave Net", "weave.rules"),
    ("Docker 20.10", "docker-20.rules"),
    ("Docker", "docker.rules"),
    ("Docker without a policy", "docker-28.rules"),
    ("Docker, nftables", "docker.nft"),
    ("Podman 4.3", "netavark-1.4.rules"),
    ("Podman", "netavark.rules"),
    ("Podman, nftables", "netavark.nft"),
    ("libvirt, iptables", "libvirt.rules"),
    ("libvirt, nftables", "libvirt.nft"),
    ("Incus", "incus.nft"),
    ("NetworkManager, shared", "network-manager.nft"),
    ("OpenStack Neutron", "neutron.rules"),
    ("firewalld", "firewalld.nft"),
    ("firewalld, iptables", "firewalld.rules"),
    ("ufw", "ufw.rules"),
    ("OpenWrt fw4, as shipped", "fw4-reject.nft"),
    ("OpenWrt fw4 with drop_invalid", "fw4-drop-invalid.nft"),
    ("OpenWrt fw3 with drop_invalid", "fw3.rules"),
    ("mwan3", "mwan3.rules"),
    ("mwan3, nftables", "mwan3.nft"),
    ("CSF", "csf.rules"),
    ("FireHOL", "firehol.rules"),
    ("Shorewall", "shorewall.rules"),
    ("arno-iptables-firewall", "arno.rules"),
    ("APF with PKT_SANITY_INV", "apf.rules"),
    ("uif", "uif.nft"),
    ("ferm", "ferm.rules"),
    ("Proxmox VE", "pve.rules"),
    ("Proxmox VE, nftables", "pve.nft"),
    ("NixOS", "nixos.rules"),
    ("NixOS, nftables", "nixos.nft"),
    ("Foomuuri", "foomuuri.nft"),
    ("IPFire", "ipfire.rules"),
    ("Firewalla", "firewalla.rules"),
    ("UniFi", "unifi.rules"),
    ("EdgeOS", "vyatta.rules"),
    ("VyOS", "vyos.nft"),
    ("fail2ban", "fail2ban.rules"),
    ("fail2ban, nftables", "fail2ban.nft"),
    ("SYNPROXY", "synproxy.rules"),
    ("rules of one's own", "plain.nft"),
)

MADE: Final = {
    "apf.rules": "APF 9.7 with PKT_SANITY_INV=1, for a server",
    "arno.rules": "arno-iptables-firewall 2.1.1, for a router",
    "docker-20.rules": "Docker 20.10.24 with a published port",
    "fail2ban.nft": "fail2ban 1.0.2 with the action nftables",
    "fail2ban.rules": "fail2ban 1.0.2 with the action iptables-multiport",
    "ferm.rules": "ferm 2.5.1 with Debian's ferm.conf",
    "firehol.rules": "FireHOL 3.1.7, for a router",
    "firewalld.nft": "firewalld 1.3.3 with the zones external and internal",
    "firewalld.rules": "firewalld 1.3.3 with FirewallBackend=iptables",
    "foomuuri.nft": "Foomuuri 0.27 of Debian 13 with the zones public and internal",
    "libvirt.rules": "libvirt 9.0.0 with the network default",
    "netavark-1.4.rules": "netavark 1.4.0 with a published port",
    "netavark.nft": "netavark 1.14.0 of Debian 13 with its driver nftables",
    "netavark.rules": "netavark 1.14.0 of Debian 13 with its driver iptables",
    "network-manager.nft": "NetworkManager 1.42.4 with ipv4.method shared",
    "shorewall.rules": "Shorewall 5.2.8 with its example two-interfaces",
    "ufw.rules": "ufw 0.36.2 with an allowed port and an allowed route",
    "uif.nft": "uif 1.99.0 with Debian's uif.conf",
}
"""The program, of Debian 12 if no other is named, that loaded a rule set in a namespace.

The other sets are written by hand. Rules of other protocols and of translation, log rules, and
chains and jumps without effect are cut.
"""

ROUTES: Final = {
    "istio-ambient.rules": ("fwmark", "0x111/0xfff", "lookup", "100", "pref", "32764"),
    "mwan3.nft": ("fwmark", "0x100/0x3f00", "lookup", "1", "pref", "2001"),
    "mwan3.rules": ("fwmark", "0x100/0x3f00", "lookup", "1", "pref", "2001"),
}
"""What the program adds by `ip rule add`, where that tests a mark that its rules restore."""

_HEAD: Final = """\
# Other programs' rules

The rules of each program, as a test loads them into a network namespace (iptables rules for IPv4
only), and the findings of `nfq-guard doctor`, with the guard's own rules installed and
`fail_mode = "kernel-drop"`. The test compares this page with the doctor's output; after a change,
run `.venv/bin/python -m tests.support.owners` as root to write it anew.

Rules "as loaded by" a version were loaded by that program itself, of Debian 12 if no other is
named, in a namespace with the interfaces eth0 (outside) and eth1 (inside), and read from the
kernel. Rules of other protocols and of address translation, log rules that do not help to recognise
the program, rules for lists of ports and addresses, and chains and jumps without effect are
omitted. The other rule sets are written by hand, in the style of the program's published sources.

The packet is a TCP segment that conntrack calls INVALID, that the guard's policy allows, and that
did not arrive on the loopback interface. Every such segment reaches a rule, unless the finding says
that this depends on properties of the segment, such as an address. Hooks where no rule treats the
segment specially for being INVALID are omitted; "by default" means a rule for packets that no
earlier rule accepted by state.

| owner | fate of the packet |
|---|---|
"""


def findings(name: str) -> list[dict[str, str]]:
    """The doctor's noteworthy checks on a rule set."""
    with Namespace("owners") as space:
        text = (RULES / name).read_text(encoding="ascii")
        if name.endswith(".nft"):
            space.run("nft", "-f", "-", stdin=text)
        else:
            space.run("iptables-legacy-restore", "-w", stdin=text)
        if name in ROUTES:
            space.ip("rule", "add", *ROUTES[name])
        config = ("--config", str(TREE / "tests" / "doctor" / "kernel-drop.toml"))
        said = io.StringIO()
        with space.entered(), redirect_stdout(said):
            main(["rules", "install", "--quiet", "--backend", "legacy", *config])
            main(["doctor", "--format", "json", *config])
    checks = [json.loads(line) for line in said.getvalue().splitlines()]
    wanted = ("foreign", "fate.", "routing", "rules.mark", "rules.order", "tracking.half")
    return [check for check in checks if check["id"].startswith(wanted) and check["status"] != "ok"]


def page() -> str:
    """The page, from the doctor's current output."""
    rows: list[str] = []
    sections: list[str] = []
    for title, name in SETS:
        checks = findings(name)
        fates = [check for check in checks if check["id"].startswith("fate.")]
        says = "<br>".join(
            f"{check['status']}: {check['id'].removeprefix('fate.')}: {_cell(check['what'])}"
            for check in fates
        )
        if any(check["id"] == "routing.mark" for check in checks):
            says = f"{says or 'like any other packet'}, but may take another route"
        rows.append(f"| [{title}](#{_anchor(title)}) | {says or 'like any other packet'} |\n")
        sections.append(_section(title, name, checks))
    return _HEAD + "".join(rows) + "".join(sections)


def _section(title: str, name: str, checks: list[dict[str, str]]) -> str:
    rules = (RULES / name).read_text(encoding="ascii").replace("\t", "  ").strip()
    lines = [f"- {check['status']} `{check['id']}`: {check['what']}" for check in checks]
    todos = dict.fromkeys(check["todo"] for check in checks if check["todo"])
    advice = [f"- Advice: {todo}" for todo in todos]
    said = "\n".join(
        [*(lines or ["- nothing: INVALID packets are treated like all others"]), *advice]
    )
    route = f"\nWith `ip rule add {' '.join(ROUTES[name])}`.\n" if name in ROUTES else ""
    made = f"As loaded by {MADE[name]}:\n\n" if name in MADE else ""
    return f"\n## {title}\n\n{made}```\n{rules}\n```\n{route}\n{said}\n"


def _cell(what: str) -> str:
    return what.partition(" is ")[2].replace("|", "\\|")


def _anchor(title: str) -> str:
    kept = (char for char in title.lower() if char.isalnum() or char in " -_")
    return "".join(kept).replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
