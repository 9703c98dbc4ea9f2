# SPDX-License-Identifier: MIT
"""Runs the containers of a Kubernetes pod by their manifest, without a cluster.

A container gets its own root, read-only if the manifest says so, with the volumes of the pod; the
user root with only the capabilities that the manifest adds; and the network namespace of the test.
Anything else that a container runtime does, such as seccomp and AppArmor, is not done.
"""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from nfq_guard.lab.netns import Namespace

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BPF_FILES: Final = "/sys/fs/bpf"
_DATA: Final = "..data"

Container = dict[str, Any]


class Pod:
    """The volumes of a pod, and the ways to run its containers."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        config_maps: Mapping[str, Mapping[str, str]],
        place: Path,
        *,
        root: Path = Path("/"),
        shared: Sequence[Path] = (),
        path: str = _PATH,
    ) -> None:
        """Make the volumes in `place`.

        Args:
            spec: The specification of the pod.
            config_maps: The files of each ConfigMap.
            place: An empty directory.
            root: The root of the image; it is not changed.
            shared: Directories of the host that containers have too.
            path: Their variable PATH.
        """
        self._spec = spec
        self._place = place
        self._root = root
        self._shared = shared
        self._path = path
        self._resources = ExitStack()
        self._bpf = place / "bpf"
        self._bpf.mkdir()
        subprocess.run(["mount", "-t", "bpf", "-o", "mode=700", "bpf", str(self._bpf)], check=True)
        self._resources.callback(subprocess.run, ["umount", "-l", str(self._bpf)], check=True)
        self.volumes: dict[str, Path] = {}
        for volume in spec["volumes"]:
            self.volumes[volume["name"]] = self._volume(volume, config_maps)

    def _volume(
        self, volume: Mapping[str, Any], config_maps: Mapping[str, Mapping[str, str]]
    ) -> Path:
        if "hostPath" in volume:
            path = str(volume["hostPath"]["path"])
            here = self._place / str(volume["name"])
            if path.startswith(_BPF_FILES):
                here = Path(f"{self._bpf}{path.removeprefix(_BPF_FILES)}")
            if volume["hostPath"]["type"] == "DirectoryOrCreate":
                here.mkdir(mode=0o755, exist_ok=True)
            assert here.is_dir()
            return here
        here = self._place / str(volume["name"])
        here.mkdir()
        if "configMap" in volume:
            update(here, config_maps[volume["configMap"]["name"]])
        else:
            assert "emptyDir" in volume
        return here

    def argv(self, container: Container, *words: str, without: str = "") -> list[str]:
        """The command that runs a container, or `words` in it as `kubectl exec` does.

        Args:
            container: Its specification.
            *words: A command that replaces its own.
            without: A capability of the manifest to withhold.
        """
        command = words or (*container.get("command", ["nfq-guard"]), *container.get("args", ()))
        security = container["securityContext"]
        assert security["runAsUser"] == 0
        assert security["capabilities"]["drop"] == ["ALL"]
        granted = [
            f"+{name.lower()}" for name in security["capabilities"]["add"] if name != without
        ]
        drop = ["setpriv", f"--bounding-set=-all,{','.join(granted)}", "--inh-caps=-all"]
        if not security["allowPrivilegeEscalation"]:
            drop.append("--no-new-privs")
        environment = [f"PATH={self._path}", "PYTHONDONTWRITEBYTECODE=1", "LANG=C.UTF-8"]
        inner = ["chroot", "root", *drop, "--", "env", "-i", *environment, *command]
        return [
            "unshare", "--mount", "--propagation", "private",
            "bash", "-euc", f"{self._mounts(container)}\nexec {shlex.join(inner)}",
        ]  # fmt: skip

    def _mounts(self, container: Container) -> str:
        # No volume has such a name.
        state = self._place / ".container"
        state.mkdir(exist_ok=True)
        lines = [
            f"mount -t tmpfs -o mode=755 tmpfs {state}",
            f"cd {state}",
            "mkdir upper work root",
            f"mount -t overlay -o lowerdir={self._root},upperdir=upper,workdir=work overlay root",
            "mount -t proc proc root/proc",
            "mount --bind root/proc/sys root/proc/sys",
            "mount -o remount,bind,ro root/proc/sys",
            "mount -t sysfs -o ro sysfs root/sys",
            "mount --rbind /dev root/dev",
        ]
        mounts = [(str(path), path, True) for path in self._shared] + [
            (mount["mountPath"], self.volumes[mount["name"]], mount.get("readOnly", False))
            for mount in container["volumeMounts"]
        ]
        for where, what, read_only in sorted(mounts):
            lines.append(f"[ -d root{where} ] || mkdir -p root{where}")
            lines.append(f"mount --bind {what} root{where}")
            if read_only:
                lines.append(f"mount -o remount,bind,ro root{where}")
        if container["securityContext"]["readOnlyRootFilesystem"]:
            lines.append("mount -o remount,bind,ro root")
        return "\n".join(lines)

    def run(
        self, space: Namespace, container: Container, *words: str, without: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a container, or `words` in it, until it exits."""
        return subprocess.run(
            space.argv(self.argv(container, *words, without=without)),
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()


def update(volume: Path, files: Mapping[str, str]) -> None:
    """Replace all files of a ConfigMap's volume at once, as the kubelet does."""
    folder = volume / f"..{sum(1 for _ in volume.iterdir())}"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"{_DATA}/{name}")
    fresh = volume / "..data_tmp"
    fresh.symlink_to(folder.name)
    fresh.replace(volume / _DATA)
