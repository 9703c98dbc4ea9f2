# SPDX-License-Identifier: MIT
"""The manifests for Kubernetes agree with the daemon, its configuration and its metrics.

`test_kubernetes_kernel.py` runs their containers.
"""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from nfq_guard import __version__
from nfq_guard.cli import main, parser_of
from nfq_guard.flows import pins
from nfq_guard.service.config import DEFAULT_PATH, load_config
from nfq_guard.service.settings import Settings, parse_listen
from tests.support import chart
from tests.support.kubernetes import KINDS, Container, DaemonSet, PodMonitor
from tests.support.kustomize import KUBERNETES, Object, build, by_identity, documents

_RULES: Final = KUBERNETES.parent / "prometheus"
_OVERLAYS: Final = sorted((KUBERNETES / "overlays").iterdir())
_TEXTS: Final = sorted(KUBERNETES.rglob("*.toml"))


def objects() -> dict[tuple[str, str], Object]:
    return by_identity(build(KUBERNETES / "overlays" / "kube-proxy-monitored"))


def daemon_sets() -> list[DaemonSet]:
    found = [each for (kind, _), each in objects().items() if kind == "DaemonSet"]
    assert len(found) == 2
    return [msgspec.convert(each, DaemonSet) for each in found]


def containers() -> list[Container]:
    spec = daemon_sets()[0].spec.template.spec
    cart = by_identity(build(KUBERNETES / "overlays" / "istio-example"))["Deployment", "cart"]
    sidecars = cart["spec"]["template"]["spec"]["initContainers"]
    return [*spec.init_containers, *spec.containers, *msgspec.convert(sidecars, list[Container])]


def settings() -> Settings:
    return load_config(KUBERNETES / "base" / DEFAULT_PATH.name).settings


def test_each_object_has_the_fields_of_its_kind() -> None:
    for each in objects().values():
        msgspec.convert(each, KINDS[each["kind"]])


def test_what_is_written_from_other_files_is_current() -> None:
    """The chart and the PrometheusRule; `make manifests` writes them."""
    files = chart.files()
    assert {path: path.read_text(encoding="utf-8") for path in files} == files
    assert set(files) >= set((chart.CHART / "templates").iterdir())


@pytest.mark.parametrize("monitored", [True, False])
def test_the_chart_has_the_objects_of_the_overlay(monitored: bool) -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["monitoring"] == {"enabled": False}
    values["monitoring"]["enabled"] = monitored
    overlay = KUBERNETES / "overlays" / ("kube-proxy-monitored" if monitored else "kube-proxy")
    expected = by_identity(build(overlay))
    del expected["Namespace", "nfq-guard"]  # `helm install --create-namespace`
    assert by_identity(chart.render(values)) == expected


def test_the_schema_has_each_value_of_the_chart() -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((chart.CHART / "values.schema.json").read_text(encoding="utf-8"))
    # Helm itself gives a chart the other two.
    assert set(schema["properties"]) == set(values) | {"enabled", "global"}


def test_values_of_the_chart_arrive() -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text(encoding="utf-8"))
    values |= {"image": "here/guard:1", "tolerations": [], "config": "[daemon]\n"}
    values |= {"priorityClassName": "mine", "resources": {"limits": {"memory": "1Gi"}}}
    found = by_identity(chart.render(values, "elsewhere"))
    spec = found["DaemonSet", "nfq-guard-enforce"]["spec"]["template"]["spec"]
    assert {each["image"] for each in (*spec["initContainers"], *spec["containers"])} == {
        "here/guard:1"
    }
    assert (spec["tolerations"], spec["priorityClassName"]) == ([], "mine")
    assert spec["containers"][0]["resources"] == values["resources"]
    assert found["ConfigMap", "nfq-guard"]["data"] == {"nfq-guard.toml": "[daemon]\n"}
    assert {each["metadata"]["namespace"] for each in found.values()} == {"elsewhere"}


@pytest.mark.parametrize("path", _TEXTS, ids=lambda path: path.parent.name)
def test_configurations_have_no_mistake(path: Path) -> None:
    """The one warning is about a systemd unit, which does not run this daemon."""
    assert main(["check", str(path)]) == 0
    assert tomllib.loads(path.read_text(encoding="utf-8"))["daemon"]["follow_files_s"] > 0


def test_commands_are_commands() -> None:
    for container in containers():
        assert container.image == f"nfq-guard:{__version__}"
        words = container.args
        if container.command:
            assert container.command[:2] == ["/bin/sh", "-c"]
            program, *words = shlex.split(container.command[2].removesuffix(" || true"))
            assert program == "nfq-guard"
        if container.lifecycle is not None:
            program, *stop = container.lifecycle.pre_stop.exec.command
            assert program == "nfq-guard"
            assert config_of(stop) == DEFAULT_PATH
        assert config_of(words) == DEFAULT_PATH


def config_of(words: list[str]) -> Path:
    path = parser_of(words).parse_args(words).config
    assert isinstance(path, Path)
    return path


def test_the_mode_is_that_of_the_label_of_the_node() -> None:
    """Each node matches one DaemonSet or none, whatever its label."""
    dry_run, enforce = daemon_sets()
    assert dry_run.spec.template.spec.affinity is not None
    (term,) = (
        dry_run.spec.template.spec.affinity.node_affinity
    ).required_during_scheduling_ignored_during_execution.node_selector_terms
    (expression,) = term.match_expressions
    assert (expression.key, expression.operator) == ("nfq-guard/mode", "NotIn")
    assert set(expression.values) == {"enforce", "off"}
    assert enforce.spec.template.spec.node_selector["nfq-guard/mode"] == "enforce"
    modes = [each.spec.template.spec.containers[0].args[1] for each in (dry_run, enforce)]
    assert modes == ["--mode=dry-run", "--mode=enforce"]
    selectors = [each.spec.selector.match_labels for each in (dry_run, enforce)]
    assert len({each["app.kubernetes.io/component"] for each in selectors}) == 2


def test_mounts_are_where_the_daemon_looks() -> None:
    spec = daemon_sets()[0].spec.template.spec
    (prepare,) = spec.init_containers
    (daemon,) = spec.containers
    paths = {each.mount_path: each for each in daemon.volume_mounts}
    volumes = {each.name: each for each in spec.volumes}
    assert set(volumes) == {each.name for one in (prepare, daemon) for each in one.volume_mounts}, (
        "volumes that nothing mounts, or mounts of nothing"
    )
    bound = volumes[paths[str(pins.BOUND)].name].host_path
    whole = volumes[{each.mount_path: each.name for each in prepare.volume_mounts}["/sys/fs/bpf"]]
    assert whole.host_path is not None
    assert bound is not None
    assert Path(whole.host_path.path) == pins.BPF_FILES
    assert Path(bound.path) == pins.BPF_FILES / "nfq-guard"
    assert paths[str(DEFAULT_PATH.parent)].read_only
    assert paths[str(pins.BOUND)].read_only
    last_good = next(word for word in daemon.args if word.startswith("--last-good="))
    for file in (settings().control_socket, last_good.partition("=")[2]):
        mount = paths[str(Path(file).parent)]
        assert not mount.read_only
        assert volumes[mount.name].empty_dir is not None
    pods = volumes[paths[settings().pods_dir].name].host_path
    assert pods is not None
    assert str(pods.path) == settings().pods_dir
    assert paths[settings().pods_dir].read_only
    assert settings().logs == ("-",), "the root is read-only"
    assert not settings().events_file


def test_probes_and_scrapes_go_where_the_daemon_listens() -> None:
    address = parse_listen(settings().metrics_listen)
    assert address is not None
    (daemon,) = daemon_sets()[0].spec.template.spec.containers
    (port,) = daemon.ports
    assert port.container_port == port.host_port == address[1]
    # The address of a node, or of a pod, may be of either family.
    assert address[0] == "::"
    sidecars = Path("deploy/kubernetes/components/istio-sidecar/nfq-guard.toml")
    assert tomllib.loads(sidecars.read_text())["daemon"]["metrics_listen"] == f"[::]:{address[1]}"
    for probe in (daemon.startup_probe, daemon.readiness_probe, daemon.liveness_probe):
        assert probe is not None
        assert (probe.http_get.path, probe.http_get.port) == ("/healthz", port.name)
    (sidecar,) = [each for each in containers() if each.restart_policy is not None]
    assert sidecar.liveness_probe is not None
    assert sidecar.liveness_probe.http_get.port == sidecar.ports[0].container_port == address[1]
    monitor = msgspec.convert(objects()["PodMonitor", "nfq-guard"], PodMonitor)
    (endpoint,) = monitor.spec.pod_metrics_endpoints
    assert (endpoint.path, endpoint.port) == ("/metrics", port.name)


def test_alerts_name_the_job_that_the_monitor_gives() -> None:
    monitor = msgspec.convert(objects()["PodMonitor", "nfq-guard"], PodMonitor)
    text = (_RULES / "nfq-guard.rules.yml").read_text(encoding="utf-8")
    for each in daemon_sets():
        labels = each.spec.template.metadata["labels"]
        assert set(re.findall(r'job="([^"]+)"', text)) == {labels[monitor.spec.job_label]}
        assert monitor.spec.selector.match_labels.items() <= labels.items()


def test_privileges_are_few() -> None:
    """Each privilege is needed, as `test_kubernetes_kernel.py` shows."""
    added: dict[str, set[Any]] = {}
    for container in containers():
        context = container.security_context
        assert context.capabilities.drop == ["ALL"]
        assert context.read_only_root_filesystem
        assert not context.privileged
        assert context.seccomp_profile.type == "RuntimeDefault"
        escalates = "SYS_ADMIN" in context.capabilities.add
        assert context.allow_privilege_escalation is escalates
        added.setdefault(container.name, set()).update(context.capabilities.add)
    assert added == {"prepare": {"NET_ADMIN", "SYS_ADMIN"}, "nfq-guard": {"NET_ADMIN", "BPF"}}
    for each in objects().values():
        assert each["kind"] not in {"ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding"}


@pytest.mark.parametrize("folder", _OVERLAYS, ids=lambda folder: folder.name)
def test_readme_names_each_overlay(folder: Path) -> None:
    assert f"overlays/{folder.name}" in (KUBERNETES / "README.md").read_text(encoding="utf-8")


def test_files_are_yaml_with_their_kind_in_their_name() -> None:
    """`kubectl apply` of a single file works too."""
    for path in (KUBERNETES / "base").glob("*.yaml"):
        (each,) = documents(path)
        assert path.stem in {each["kind"].lower(), "kustomization"}
