# SPDX-License-Identifier: MIT
"""Generates the derived files of `deploy/kubernetes`: `python -m tests.support.chart`.

The PrometheusRule has the rules of `deploy/prometheus`. The templates of the Helm chart are the
objects of the kustomization `overlays/kube-proxy-monitored`, with values of the chart in some
places.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

import yaml

from nfq_guard import __version__
from tests.support.kustomize import KUBERNETES, Object, build

CHART: Final = KUBERNETES / "chart"
_RULE: Final = KUBERNETES / "components" / "monitoring" / "prometheusrule.yaml"
_RULES: Final = KUBERNETES.parent / "prometheus" / "nfq-guard.rules.yml"
_SOURCE: Final = KUBERNETES / "overlays" / "kube-proxy-monitored"
_HEAD: Final = "# Written by `make manifests`; do not edit.\n"
# Kinds of the Prometheus Operator.
_MONITORING: Final = frozenset({"PodMonitor", "PrometheusRule"})
_IMAGE: Final = "image: nfq-guard:0.1.0"

# Helm holds values against it. A misspelt value would otherwise be without effect, and one of
# another type give objects that the API refuses, or PodMonitors for the text "false".
_SCHEMA: Final = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": ["image", "monitoring", "priorityClassName", "config"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string", "minLength": 1},
        "monitoring": {
            "type": "object",
            "required": ["enabled"],
            "additionalProperties": False,
            "properties": {"enabled": {"type": "boolean"}},
        },
        "resources": {"type": "object"},
        "priorityClassName": {"type": "string"},
        "tolerations": {"type": "array", "items": {"type": "object"}},
        "config": {"type": "string", "minLength": 1},
        "enabled": {"description": "Of a chart that has this one as a dependency."},
        "global": {"description": "Helm gives these to a chart that is part of another."},
    },
}


def write() -> None:
    """Write all files, and remove obsolete templates."""
    found = files()
    for path in set((CHART / "templates").iterdir()) - set(found):
        path.unlink()
    for path, text in found.items():
        path.write_text(text, encoding="utf-8")


def files() -> dict[Path, str]:
    """The text of each file."""
    found = {_RULE: _HEAD + _dump(_prometheus_rule())}
    # The kustomization behind the templates reads the file from disk.
    objects = [_prometheus_rule_in(each) for each in build(_SOURCE)]
    found[CHART / "Chart.yaml"] = _HEAD + _dump(
        {
            "apiVersion": "v2",
            "name": "nfq-guard",
            "description": "Judges the packets that conntrack calls INVALID, on every node",
            "type": "application",
            "version": __version__,
            "appVersion": __version__,
            "kubeVersion": ">=1.30.0-0",
        }
    )
    found[CHART / "values.yaml"] = _values(objects)
    found[CHART / "values.schema.json"] = json.dumps(_SCHEMA, indent=2) + "\n"
    for each in objects:
        if each["kind"] == "Namespace":
            continue  # `helm install --create-namespace`
        name = f"{each['kind'].lower()}-{each['metadata']['name']}.yaml"
        found[CHART / "templates" / name] = _template(each)
    return found


def _dump(value: object) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, width=100))


def _prometheus_rule() -> Object:
    rules = yaml.safe_load(_RULES.read_text(encoding="utf-8"))
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "nfq-guard", "labels": {"app.kubernetes.io/name": "nfq-guard"}},
        "spec": rules,
    }


def _prometheus_rule_in(each: Object) -> Object:
    if each["kind"] != "PrometheusRule":
        return each
    return each | {"spec": _prometheus_rule()["spec"]}


def _config(objects: list[Object]) -> str:
    (text,) = [each["data"]["nfq-guard.toml"] for each in objects if each["kind"] == "ConfigMap"]
    return str(text)


def _values(objects: list[Object]) -> str:
    daemon = next(each for each in objects if each["kind"] == "DaemonSet")["spec"]["template"][
        "spec"
    ]
    return (
        _HEAD
        + "# The image; there is no public registry with one, see deploy/container.\n"
        + _dump({"image": _IMAGE.removeprefix("image: ")})
        + "\n# PodMonitor and PrometheusRule; takes the Prometheus Operator.\n"
        + _dump({"monitoring": {"enabled": False}})
        + "\n# Of the daemon.\n"
        + _dump({"resources": daemon["containers"][0]["resources"]})
        + "\n"
        + _dump({"priorityClassName": daemon["priorityClassName"]})
        + "\n"
        + _dump({"tolerations": daemon["tolerations"]})
        + "\n# The file /etc/nfq-guard/nfq-guard.toml of every node. A change is reloaded.\n"
        + "config: |\n"
        + "".join(f"  {line}".rstrip() + "\n" for line in _config(objects).splitlines())
    )


class _Placeholders:
    """Replaces parts of an object by values of the chart."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def __call__(self, expression: str) -> str:
        mark = f"__{len(self._texts)}__"
        self._texts[mark] = expression
        return mark

    def filled(self, text: str) -> str:
        for mark, expression in self._texts.items():
            text = text.replace(f"'{mark}'", mark).replace(mark, expression)
        return text


def _template(each: Object) -> str:
    put = _Placeholders()
    each["metadata"]["namespace"] = put("{{ .Release.Namespace }}")
    if each["kind"] == "ConfigMap":
        each["data"]["nfq-guard.toml"] = put("{{ toJson .Values.config }}")
    if each["kind"] == "DaemonSet":
        spec = each["spec"]["template"]["spec"]
        for container in (*spec["initContainers"], *spec["containers"]):
            container["image"] = put("{{ toJson .Values.image }}")
        spec["containers"][0]["resources"] = put("{{ toJson .Values.resources }}")
        spec["priorityClassName"] = put("{{ toJson .Values.priorityClassName }}")
        spec["tolerations"] = put("{{ toJson .Values.tolerations }}")
    if each["kind"] == "ResourceQuota":
        (expression,) = each["spec"]["scopeSelector"]["matchExpressions"]
        expression["values"] = [put("{{ toJson .Values.priorityClassName }}")]
    if each["kind"] in _MONITORING:
        # Prometheus's templates use the same braces.
        text = put.filled(_escaped(_dump(each)))
        return _HEAD + "{{- if .Values.monitoring.enabled }}\n" + text + "{{- end }}\n"
    return _HEAD + put.filled(_dump(each))


def _escaped(text: str) -> str:
    return text.replace("{{", "\0").replace("}}", '{{ "}}" }}').replace("\0", '{{ "{{" }}')


def render(values: Any, namespace: str = "nfq-guard") -> list[Object]:  # noqa: ANN401 - YAML
    """The objects of the chart, rendered by the subset of Helm's language that the templates use.

    Args:
        values: Values as in `values.yaml`.
        namespace: Namespace of the release.
    """
    return [
        one
        for path in sorted((CHART / "templates").iterdir())
        for one in yaml.safe_load_all(
            _rendered(path.read_text(encoding="utf-8"), values, namespace)
        )
        if one is not None
    ]


_TOKEN: Final = re.compile(r"\{\{(-?) (.*?) \}\}")
_WORD: Final = re.compile(r"\.(Values|Release)((?:\.\w+)+)")


def _rendered(text: str, values: Any, namespace: str) -> str:  # noqa: ANN401 - YAML
    """A template with each expression replaced; `if` and `end` have lines of their own."""
    lines = []
    shown = [True]
    for line in text.splitlines():
        words = _TOKEN.fullmatch(line)
        if words is not None and words[2] == "end":
            shown.pop()
        elif words is not None and words[2].startswith("if "):
            shown.append(bool(_value(words[2].removeprefix("if "), values, namespace)))
        elif all(shown):
            lines.append(_TOKEN.sub(lambda found: _expression(found[2], values, namespace), line))
    assert shown == [True]
    return "\n".join(lines)


def _expression(text: str, values: Any, namespace: str) -> str:  # noqa: ANN401 - YAML
    if text in {'"{{"', '"}}"'}:
        return text.strip('"')
    if text.startswith("toJson "):
        return json.dumps(_value(text.removeprefix("toJson "), values, namespace))
    return str(_value(text, values, namespace))


def _value(text: str, values: Any, namespace: str) -> Any:  # noqa: ANN401 - YAML
    words = _WORD.fullmatch(text)
    assert words is not None, text
    found: Any = values if words[1] == "Values" else {"Namespace": namespace}
    for name in words[2].split(".")[1:]:
        found = found[name]  # a missing value is an error here, but empty in Helm
    return found


if __name__ == "__main__":
    write()
