# SPDX-License-Identifier: MIT
"""Files that libcni keeps for each interface of a pod under containerd and CRI-O."""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

_NETWORK = "cbr0"


def cached(
    pod: str,
    *addresses: str,
    namespace: str = "shop",
    container: str = "",
    interface: str = "eth0",
) -> dict[str, Any]:
    """The object in a file; `addresses` include the prefix length."""
    container = container or hashlib.sha256(pod.encode()).hexdigest()
    return {
        "kind": "cniCacheV1",
        "containerId": container,
        "config": base64.b64encode(b'{"cniVersion": "1.0.0", "name": "cbr0"}').decode(),
        "ifName": interface,
        "networkName": _NETWORK,
        "netns": "/var/run/netns/cni-c54a077d-d037-cfee-9539-3d00c421cced",
        "cniArgs": [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", namespace],
            ["K8S_POD_NAME", pod],
            ["K8S_POD_INFRA_CONTAINER_ID", container],
            ["K8S_POD_UID", "066d422b-2c4f-4848-b206-9da12d2e0de9"],
        ],
        "result": {
            "cniVersion": "1.0.0",
            "dns": {},
            "interfaces": [{"mac": "26:8a:ea:05:69:3f", "name": interface}],
            "ips": [{"address": address, "interface": 0} for address in addresses],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }


def write(place: Path, pod: str, *addresses: str, **fields: str) -> Path:
    """Write the file of an interface into a directory, as libcni does; returns its path."""
    found = cached(pod, *addresses, **fields)
    path = place / f"{_NETWORK}-{found['containerId']}-{found['ifName']}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(found, file)
    return path
