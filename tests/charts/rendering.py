"""The chart as helm renders it, for each set of values that the tests look at."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from contracts.helm import tool

CHART = Path(__file__).parents[2] / "charts" / "wharfinger"
EXTERNAL = {"image": {"registry": "registry.example.com/ml"}, "database": {"existingSecret": "db"}}
QUEUED = EXTERNAL | {"queue": {"existingSecret": "mq"}}
GPU = {
    "name": "street-scenes",
    "model": "/models/street.pt",
    "engine": "ultralytics",
    "image": "registry.example.com/ml/street:3",
    "gpus": 1,
    "runtimeClassName": "nvidia",
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "taskSeconds": 120,
    "startupSeconds": 900,
    "settings": {"PREFETCH": 4},
}

VALUES: dict[str, dict[str, Any]] = {
    "external": QUEUED,
    "evaluation": {"evaluation": {"enabled": True}},
    "no-queue": EXTERNAL | {"queue": {"enabled": False}},
    "evaluation-no-queue": {"evaluation": {"enabled": True}, "queue": {"enabled": False}},
    "gpu": QUEUED | {"pools": [{"name": "yolo11n"}, GPU]},
    "keda-postgresql": QUEUED
    | {
        "queue": {"existingSecret": "mq", "caSecret": "mq-ca"},
        "pools": [{"name": "yolo11n", "autoscaling": {"enabled": True}}, GPU | {"autoscaling": {"enabled": True}}],
    },
    "keda-prometheus": EXTERNAL
    | {
        "queue": {"enabled": False},
        "poolDefaults": {
            "autoscaling": {
                "enabled": True,
                "source": "prometheus",
                "prometheusUrl": "http://prometheus.monitoring:9090",
                "minReplicas": 1,
            }
        },
    },
    "everything": QUEUED
    | {
        "image": {"registry": "registry.example.com/ml", "pullSecrets": ["pull"], "tag": "1.2.3"},
        "settings": {"FILE_RETENTION_DAYS": 7, "LOG_LEVEL": "debug", "HEADROOM_BYTES": 20000000000},
        "database": {
            "existingSecret": "db",
            "caSecret": "db-ca",
            "createLogins": True,
            "port": 6432,
            "directKeySuffix": "-direct",
        },
        "queue": {"existingSecret": "mq", "caSecret": "mq-ca"},
        "adminKey": {"existingSecret": "admin", "key": "the.key"},
        "storage": {"className": "-", "volumeName": "wharf-files", "annotations": {"a": "b"}, "keep": False},
        "podAnnotations": {"example.com/a": "b"},
        "podLabels": {"team": "vision"},
        "poolDefaults": {"extraEnv": [{"name": "CUDA_CACHE_PATH", "value": "/tmp/cuda"}]},
        "broker": {"settings": {"MAX_POOL_BACKLOG": 1000000}, "service": {"annotations": {"a": "b"}}},
        "ingress": {
            "enabled": True,
            "host": "wharf.example.com",
            "className": "nginx",
            "tlsSecret": "tls",
            "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "60"},
        },
        "route": {"enabled": True, "host": "wharf.example.com", "annotations": {"a": "b"}},
        "networkPolicy": {
            "clients": [{"namespaceSelector": {}}],
            "monitoring": [{"namespaceSelector": {}}],
            "databasePeers": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "queuePeers": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "collectorPeers": [{"namespaceSelector": {}}],
            "extraEgress": [{"ports": [{"port": 15012, "protocol": "TCP"}]}],
        },
        "serviceAccount": {"annotations": {"a": "b"}},
        "telemetry": {
            "endpoint": "http://collector.monitoring:4318",
            "headersSecret": "collector",
            "sampler": "parentbased_traceidratio",
            "samplerArgument": "0.01",
        },
        "monitoring": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "rules": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True},
        },
    },
    "little": EXTERNAL
    | {
        "queue": {"enabled": False},
        "storage": {"existingClaim": "files"},
        "pools": [],
        "cleanup": {"enabled": False},
        "verify": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
    },
    "long-names": QUEUED
    | {
        "fullnameOverride": "a-release-whose-name-is-as-long-as-it-is",
        "pools": [
            {"name": name, "model": "yolo11n"}
            for name in (
                "a-pool-whose-name-is-as-long-as-it-can-0",
                "a-pool-whose-name-is-as-long-as-it-can-1",
                "just-long",
            )
        ],
        "poolDefaults": {"autoscaling": {"enabled": True}},
    },
}


class _Loader(yaml.CSafeLoader):
    """Refuses a key that is there twice, where YAML's readers take one of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"twice in one mapping: {twice}"
        return super().construct_mapping(node, deep)


_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, lambda loader, node: loader.construct_mapping(node, deep=True)
)


def run(release: str, *arguments: str, values: dict[str, Any] | None = None) -> "subprocess.CompletedProcess[str]":
    """helm with the values as its input."""
    return subprocess.run(
        [tool("helm", release), *arguments, "--values", "-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        timeout=60,
    )


def rendered(values: dict[str, Any], *arguments: str, release: str = "35", chart: Path = CHART) -> list[dict[str, Any]]:
    """The objects, in the namespace `ml` for the release `wharf`."""
    ended = run(release, "template", "wharf", str(chart), "--namespace", "ml", *arguments, values=values)
    assert ended.returncode == 0, ended.stderr
    return [found for found in yaml.load_all(ended.stdout, _Loader) if found]


@cache
def objects(name: str, release: str = "35") -> list[dict[str, Any]]:
    """Of one of `VALUES`. Change none of them."""
    return rendered(VALUES[name], release=release)


@dataclass(frozen=True)
class Pods:
    """What makes pods, and the pods that it makes."""

    owner: dict[str, Any]
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def is_ours(self) -> bool:
        return self.component not in ("postgres", "rabbitmq")

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def environment(self, container: dict[str, Any], of: list[dict[str, Any]]) -> dict[str, Any]:
        """By name: the text, or where it comes from. ConfigMaps are looked up among the objects."""
        found: dict[str, Any] = {}
        for source in container.get("envFrom", []):
            [config] = [
                other
                for other in of
                if other["kind"] == "ConfigMap" and other["metadata"]["name"] == source["configMapRef"]["name"]
            ]
            found |= config["data"]
        for one in container.get("env", []):
            found[one["name"]] = one.get("value", one.get("valueFrom"))
        return found


def pods_of(several: list[dict[str, Any]]) -> Iterator[Pods]:
    for owner in several:
        match owner["kind"]:
            case "Deployment" | "StatefulSet" | "Job":
                template = owner["spec"]["template"]
            case "CronJob":
                template = owner["spec"]["jobTemplate"]["spec"]["template"]
            case "Pod":
                template = owner
            case _:
                continue
        yield Pods(owner, template["metadata"]["labels"], template["spec"])


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """As Kubernetes matches labels; of the operators only `In`."""
    for wanted in selector.get("matchExpressions", []):
        assert wanted["operator"] == "In"
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
