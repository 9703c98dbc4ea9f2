# SPDX-License-Identifier: MIT
"""docs/owners.md: rule sets in the style of each program, loaded, and what the doctor says of them.

`python -m tests.support.owners` writes the page anew, as root.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from nfq_guard.lab.netns import Namespace

TREE: Final = Path(__file__).parents[2]
PAGE: Final = TREE / "docs" / "owners.md"
RULES: Final = TREE / "tests" / "doctor" / "rules"

SETS: Final = (
    ("kube-proxy", "kube-proxy.rules"),
    ("kube-proxy, nftables", "kube-proxy.nft"),
    ("kube-router", "kube-router.rules"),
    ("Istio", "istio.rules"),
    ("Calico, iptables", "calico.rules"),
    ("Calico, nftables", "calico.nft"),
    ("Cilium", "cilium.rules"),
    ("Antrea", "antrea.rules"),
    ("Docker", "docker.rules"),
    ("Docker without a policy", "docker-28.rules"),
    ("Docker, nftables", "docker.nft"),
    ("Podman", "netavark.rules"),
    ("Podman, nftables", "netavark.nft"),
    ("libvirt", "libvirt.nft"),
    ("OpenStack Neutron", "neutron.rules"),
    ("firewalld", "firewalld.nft"),
    ("firewalld, iptables", "firewalld.rules"),
    ("ufw", "ufw.rules"),
    ("OpenWrt fw4, as shipped", "fw4-reject.nft"),
    ("OpenWrt fw4 with drop_invalid", "fw4-drop-invalid.nft"),
    ("mwan3", "mwan3.rules"),
    ("mwan3, nftables", "mwan3.nft"),
    ("CSF", "csf.rules"),
    ("FireHOL", "firehol.rules"),
    ("Shorewall", "shorewall.rules"),
    ("Proxmox VE", "pve.rules"),
    ("Proxmox VE, nftables", "pve.nft"),
    ("NixOS", "nixos.rules"),
    ("NixOS, nftables", "nixos.nft"),
    ("Foomuuri", "foomuuri.nft"),
    ("UniFi", "unifi.rules"),
    ("VyOS", "vyos.nft"),
    ("fail2ban", "fail2ban.rules"),
    ("fail2ban, nftables", "fail2ban.nft"),
    ("SYNPROXY", "synproxy.rules"),
    ("rules of one's own", "plain.nft"),
)

_HEAD: Final = """\
# Other programs' rules

Rules in the style of each program, as a test loads them into a network namespace (IPv4 where they
are iptables rules), and what `nfq-guard doctor` then says of them, with the guard's own rules
installed and `fail_mode = "kernel-drop"`. The test compares this page with the doctor's output;
after a change, `python -m tests.support.owners` as root writes it anew.

The packet followed is a TCP segment that conntrack calls INVALID, that the guard's policy allows,
and that did not arrive on the loopback interface. A rule is reached for sure, or "depends on" what
the segment alone decides, such as an address. Hooks where nothing takes the segment for being
INVALID are left out; "by default" is a rule that takes what no earlier rule accepted by state.

| owner | what becomes of the packet |
|---|---|
"""


def findings(name: str) -> list[dict[str, str]]:
    """The doctor's checks on a rule set that has something to say."""
    with Namespace("owners") as space:
        text = (RULES / name).read_text(encoding="ascii")
        if name.endswith(".nft"):
            space.run("nft", "-f", "-", stdin=text)
        else:
            space.run("iptables-legacy-restore", "-w", stdin=text)
        config = ("--config", str(TREE / "tests" / "doctor" / "kernel-drop.toml"))
        guard = (sys.executable, "-m", "nfq_guard")
        space.run(*guard, "rules", "install", "--backend", "legacy", *config)
        done = subprocess.run(
            space.argv([*guard, "doctor", "--format", "json", *config]),
            check=False,
            capture_output=True,
            text=True,
        )
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = ("foreign", "fate.", "rules.mark", "rules.order")
    return [check for check in checks if check["id"].startswith(wanted) and check["status"] != "ok"]


def page() -> str:
    """The page, from the doctor's output of now."""
    rows: list[str] = []
    sections: list[str] = []
    for title, name in SETS:
        checks = findings(name)
        fates = [check for check in checks if check["id"].startswith("fate.")]
        says = "<br>".join(
            f"{check['status']}: {check['id'].removeprefix('fate.')}: {_cell(check['what'])}"
            for check in fates
        )
        rows.append(f"| [{title}](#{_anchor(title)}) | {says or 'as of any other packet'} |\n")
        sections.append(_section(title, name, checks))
    return _HEAD + "".join(rows) + "".join(sections)


def _section(title: str, name: str, checks: list[dict[str, str]]) -> str:
    rules = (RULES / name).read_text(encoding="ascii").replace("\t", "  ").strip()
    lines = [f"- {check['status']} `{check['id']}`: {check['what']}" for check in checks]
    todos = dict.fromkeys(check["todo"] for check in checks if check["todo"])
    advice = [f"- Advice: {todo}" for todo in todos]
    said = "\n".join([*(lines or ["- nothing: INVALID packets fare as all others"]), *advice])
    return f"\n## {title}\n\n```\n{rules}\n```\n\n{said}\n"


def _cell(what: str) -> str:
    return what.partition(" is ")[2].replace("|", "\\|")


def _anchor(title: str) -> str:
    kept = (char for char in title.lower() if char.isalnum() or char in " -_")
    return "".join(kept).replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
