# SPDX-License-Identifier: MIT
"""The parts of Kubernetes' API that our manifests use, as types that reject any other field.

`make manifests-check` validates the manifests against the published schemas of several versions,
which requires a download. This finds a misspelt or misplaced field offline.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Quantity = Annotated[str, Meta(pattern=r"^\d+(m|Ki|Mi|Gi|%)?$")]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Path = Annotated[str, Meta(pattern=r"^/[^:]*$")]
Capability = Literal["ALL", "NET_ADMIN", "SYS_ADMIN", "BPF", "PERFMON"]


class Strict(Struct, forbid_unknown_fields=True, rename="camel"):
    """An unknown field is a mistake."""


class Metadata(Strict):
    name: Name
    namespace: Name | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Capabilities(Strict):
    add: list[Capability]
    drop: list[Capability]


class Profile(Strict):
    type: Literal["RuntimeDefault", "Unconfined"]


class SecurityContext(Strict):
    run_as_user: int
    run_as_non_root: bool
    privileged: bool
    allow_privilege_escalation: bool
    read_only_root_filesystem: bool
    capabilities: Capabilities
    seccomp_profile: Profile
    app_armor_profile: Profile | None = None


class HttpGet(Strict):
    path: Path
    port: Port | str


class Probe(Strict):
    http_get: HttpGet
    period_seconds: int
    timeout_seconds: int = 1
    failure_threshold: int = 3


class Exec(Strict):
    command: list[str]


class Handler(Strict):
    exec: Exec


class Lifecycle(Strict):
    pre_stop: Handler


class Resources(Strict):
    requests: dict[Literal["cpu", "memory"], Quantity]
    limits: dict[Literal["cpu", "memory"], Quantity]


class ContainerPort(Strict):
    name: Annotated[str, Meta(max_length=15)]
    container_port: Port
    host_port: Port | None = None
    protocol: Literal["TCP", "UDP"] = "TCP"


class VolumeMount(Strict):
    name: Name
    mount_path: Path
    read_only: bool = False


class Container(Strict):
    name: Name
    image: str
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"]
    resources: Resources
    security_context: SecurityContext
    volume_mounts: list[VolumeMount]
    command: list[str] = []
    args: list[str] = []
    restart_policy: Literal["Always"] | None = None
    ports: list[ContainerPort] = []
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    termination_message_policy: Literal["FallbackToLogsOnError", "File"] = "File"


class ConfigMapSource(Strict):
    name: Name


class HostPathSource(Strict):
    path: Path
    type: Literal["Directory", "DirectoryOrCreate"]


class EmptyDirSource(Strict):
    medium: Literal["", "Memory"] = ""
    size_limit: Quantity | None = None


class Volume(Strict):
    name: Name
    config_map: ConfigMapSource | None = None
    host_path: HostPathSource | None = None
    empty_dir: EmptyDirSource | None = None


class Toleration(Strict):
    operator: Literal["Exists", "Equal"]


class Expression(Strict):
    key: str
    operator: Literal["In", "NotIn"]
    values: list[str]


class Term(Strict):
    match_expressions: list[Expression]


class NodeSelector(Strict):
    node_selector_terms: list[Term]


class NodeAffinity(Strict):
    required_during_scheduling_ignored_during_execution: NodeSelector


class Affinity(Strict):
    node_affinity: NodeAffinity


class PodSpec(Strict):
    automount_service_account_token: bool
    service_account_name: Name
    priority_class_name: Name
    tolerations: list[Toleration]
    node_selector: dict[str, str]
    termination_grace_period_seconds: int
    init_containers: list[Container]
    containers: list[Container]
    volumes: list[Volume]
    host_network: bool = False
    dns_policy: Literal["Default", "ClusterFirst"] = "ClusterFirst"
    affinity: Affinity | None = None


class Template(Strict):
    metadata: Any
    spec: PodSpec


class Selector(Strict):
    match_labels: dict[str, str]


class RollingUpdate(Strict):
    max_unavailable: Quantity


class UpdateStrategy(Strict):
    type: Literal["RollingUpdate"]
    rolling_update: RollingUpdate


class DaemonSetSpec(Strict):
    selector: Selector
    update_strategy: UpdateStrategy
    template: Template


class DaemonSet(Strict):
    api_version: Literal["apps/v1"]
    kind: Literal["DaemonSet"]
    metadata: Metadata
    spec: DaemonSetSpec


class Namespace(Strict):
    api_version: Literal["v1"]
    kind: Literal["Namespace"]
    metadata: Metadata


class ServiceAccount(Strict):
    api_version: Literal["v1"]
    kind: Literal["ServiceAccount"]
    metadata: Metadata
    automount_service_account_token: bool


class ConfigMap(Strict):
    api_version: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Metadata
    data: dict[str, str]


class ScopeExpression(Strict):
    scope_name: Literal["PriorityClass"]
    operator: Literal["In"]
    values: list[str]


class ScopeSelector(Strict):
    match_expressions: list[ScopeExpression]


class QuotaSpec(Strict):
    hard: dict[Literal["pods"], Quantity]
    scope_selector: ScopeSelector


class ResourceQuota(Strict):
    api_version: Literal["v1"]
    kind: Literal["ResourceQuota"]
    metadata: Metadata
    spec: QuotaSpec


class Relabeling(Strict):
    source_labels: list[str] = []
    target_label: str | None = None
    action: Literal["replace", "labeldrop"] = "replace"
    regex: str | None = None


class Endpoint(Strict):
    port: str
    path: Path
    interval: str
    relabelings: list[Relabeling]


class PodMonitorSpec(Strict):
    job_label: str
    selector: Selector
    pod_metrics_endpoints: list[Endpoint]


class PodMonitor(Strict):
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class PrometheusRule(Strict):
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: dict[Literal["groups"], list[dict[str, Any]]]


KINDS = {
    kind.__name__: kind
    for kind in (
        ConfigMap,
        DaemonSet,
        Namespace,
        PodMonitor,
        PrometheusRule,
        ResourceQuota,
        ServiceAccount,
    )
}
