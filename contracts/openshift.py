"""OpenShift's Templates, made from the chart's objects, with parameters in place of what these were rendered with."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from contracts.rendering import (
    CLAIM,
    NAMESPACE,
    QUEUE_CA,
    STARTER_MODEL,
    VERSION,
    Manifest,
    chart,
    make_authorities_optional,
    mark_settings,
    registering_job,
    without_revision,
)

GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
KEPT_SECONDS = 86400
"""So long Jobs can be looked at when they are done."""


@dataclass(frozen=True)
class Parameter:
    """One of a Template's. `stand_in` is what the chart is rendered with in its place: a number where the object
    wants a number, and nothing that occurs in the chart by itself."""

    name: str
    description: str
    stand_in: Any
    value: str | None = None
    required: bool = False
    generated_from: str | None = None
    may_be_null: bool = False
    """Then it is all of a value, and `null` leaves the field out."""
    rendered: Any = None
    """What the chart makes of the stand-in, where that is not the stand-in itself."""

    def declaration(self) -> Manifest:
        said: Manifest = {"name": self.name, "description": self.description}
        if self.generated_from is not None:
            said |= {"generate": "expression", "from": self.generated_from}
        if self.value is not None:
            said["value"] = self.value
        if self.required:
            said["required"] = True
        return said


NAME = Parameter(
    "NAME", "Names of all objects begin with it; also the Route's name", "wharfinger-p-name", "wharfinger", True
)
DATABASE_SECRET = Parameter(
    "DATABASE_SECRET",
    "Secret with PostgreSQL's URLs: owner-url, api-url, relay-url, worker-url, cleanup-url",
    "p-database-secret",
    "wharfinger-database",
    True,
)
DATABASE_CA_SECRET = Parameter(
    "DATABASE_CA_SECRET",
    "Secret with the authorities that vouch for PostgreSQL (key ca.crt), for URLs with sslmode=verify-full; it may be "
    "missing",
    "p-database-ca-secret",
    "wharfinger-database-ca",
    True,
)
QUEUE_SECRET = Parameter(
    "QUEUE_SECRET", "Secret with RabbitMQ's URLs: relay-url, worker-url", "p-queue-secret", "wharfinger-queue", True
)
PULL_SECRETS = Parameter(
    "PULL_SECRETS",
    'Secrets with a login for the registry of the images, for example [{"name": "my-registry"}]; null: none',
    ["p-pull-secret"],
    "null",
    required=True,
    may_be_null=True,
    rendered=[{"name": "p-pull-secret"}],
)
REVISION = Parameter(
    "REVISION",
    "End of the Job's name, new each time: a Job cannot be changed",
    None,
    generated_from="[a-z0-9]{8}",
    required=True,
)

PARAMETERS = (
    NAME,
    Parameter("BROKER_IMAGE", "Image of broker, relay, cleanup, verify and migrate", "p/broker:1", None, True),
    Parameter("WORKER_IMAGE", "Image of the workers on CPUs, with OpenVINO", "p/worker-cpu:1", None, True),
    Parameter(
        "GPU_WORKER_IMAGE",
        "Image of the workers on GPUs, with ultralytics; never pulled while GPU_WORKER_REPLICAS is 0",
        "p/worker-gpu:1",
        f"wharfinger-worker-gpu:{VERSION}",
        True,
    ),
    PULL_SECRETS,
    Parameter(
        "STORAGE_CLASS_NAME",
        f"StorageClass of the claim {CLAIM}; it must offer ReadWriteMany (CephFS, NFS, EFS, Filestore); null: the "
        "cluster's default",
        "p-class",
        None,
        required=True,
        may_be_null=True,
    ),
    Parameter("STORAGE_SIZE", "Room for files and models, for example 500Gi", "41001Gi", "100Gi", True),
    DATABASE_SECRET,
    DATABASE_CA_SECRET,
    Parameter("DATABASE_PORT", "Port of PostgreSQL; pods may reach no other", 41002, "5432", True),
    QUEUE_SECRET,
    Parameter(
        "QUEUE_CA_SECRET",
        "Secret with the authorities that vouch for RabbitMQ (key ca.crt), for QUEUE_CA_FILE; it may be missing",
        "p-queue-ca-secret",
        "wharfinger-queue-ca",
        True,
    ),
    Parameter(
        "QUEUE_CA_FILE",
        f"{QUEUE_CA}, if the authorities of QUEUE_CA_SECRET vouch for RabbitMQ; empty: those that the image knows",
        None,
    ),
    Parameter("QUEUE_PORT", "Port of RabbitMQ: 5671 for amqps, 5672 for amqp", 41003, "5671", True),
    Parameter(
        "ADMIN_API_KEY",
        "An admin's API key of the tenant `default`: wharf_ and at least 32 characters. A key that was admitted before "
        "stays valid; give it here to keep it in the Secret",
        None,
        generated_from="wharf_[a-zA-Z0-9]{43}",
        required=True,
    ),
    REVISION,
    Parameter(
        "HOST",
        "Host name of the Route; null: OpenShift chooses",
        "p-host.example.com",
        "null",
        required=True,
        may_be_null=True,
    ),
    Parameter("ROUTE_TIMEOUT", "Longest request through the Route, uploads included", "41004s", "3600s", True),
    Parameter("BROKER_REPLICAS", "How many brokers", 41005, "2", True),
    Parameter("RELAY_REPLICAS", "How many relays; a second takes over when one dies", 41006, "2", True),
    Parameter(
        "MODEL",
        "Registered name of the model of the workers on CPUs; part of object names, so of a-z, 0-9 and hyphens",
        "p-model-cpu",
        "yolo11n",
        True,
    ),
    Parameter("WORKER_REPLICAS", "How many workers on CPUs", 41007, "1", True),
    Parameter("WORKER_CPUS", "CPUs of each worker, and pictures at once in it", "41008", "2", True),
    Parameter("WORKER_MEMORY", "Most memory of each worker; 1Gi of it is reserved", "41009Mi", "4Gi", True),
    Parameter(
        "GPU_MODEL",
        "Registered name of the model of the workers on GPUs, with the engine ultralytics; not MODEL's",
        "p-model-gpu",
        "yolo11n-gpu",
        True,
    ),
    Parameter("GPU_WORKER_REPLICAS", "How many workers on GPUs; 0: the cluster needs none", 41010, "0", True),
    Parameter("GPUS", "GPUs (nvidia.com/gpu) of each worker on GPUs", 41011, "1", True),
    Parameter("GPU_WORKER_CPUS", "CPUs of each worker on GPUs, and pictures at once in it", "41014", "2", True),
    Parameter("GPU_WORKER_MEMORY", "Most memory of each worker on GPUs; 1Gi of it is reserved", "41015Mi", "8Gi", True),
    Parameter("FILE_RETENTION_DAYS", "Days that a file is kept, unless it is pinned", "41012", "30", True),
    Parameter("JOB_RETENTION_DAYS", "Days that a job is kept after its end", "41013", "90", True),
    Parameter(
        "CLEANUP_SCHEDULE", "When expired files are removed, as cron writes it", "41 1 13 12 3", "*/15 * * * *", True
    ),
)

MODEL_PARAMETERS = (
    replace(NAME, description="NAME of template.yaml"),
    Parameter("MODEL", "The name to register it under, as MODEL or GPU_MODEL of template.yaml", "p-model", None, True),
    Parameter(
        "MODEL_FILE",
        "The model in the image, or below /srv/wharf/models on the volume: an .onnx, an OpenVINO .xml with its .bin, "
        f"or for the engine ultralytics a .pt. The worker's image has {STARTER_MODEL}, which reads digits",
        "/p/model-file",
        None,
        True,
    ),
    Parameter(
        "IMAGE",
        "The image of the workers that serve it, or one made from it that holds the model",
        "p/worker:1",
        None,
        True,
    ),
    PULL_SECRETS,
    Parameter("ENGINE", "openvino, or ultralytics", "p-engine:P", "openvino", True),
    DATABASE_SECRET,
    DATABASE_CA_SECRET,
    REVISION,
)

EVALUATION_PARAMETERS = (
    replace(NAME, description="NAME of template.yaml"),
    Parameter("POSTGRES_IMAGE", "The official image of PostgreSQL, 15 or newer", "p/postgres:1", "postgres:17", True),
    Parameter("RABBITMQ_IMAGE", "The official image of RabbitMQ, 3.10 or newer", "p/rabbitmq:1", "rabbitmq:4", True),
    PULL_SECRETS,
    Parameter(
        "STORAGE_CLASS_NAME",
        "StorageClass of their claims, ReadWriteOnce; null: the cluster's default",
        "p-class",
        "null",
        required=True,
        may_be_null=True,
    ),
    Parameter("POSTGRES_SIZE", "Room for the database", "41021Gi", "5Gi", True),
    Parameter("RABBITMQ_SIZE", "Room for the queues", "41022Gi", "2Gi", True),
    Parameter("DATABASE_SECRET", "DATABASE_SECRET of template.yaml; made here", None, "wharfinger-database", True),
    Parameter("QUEUE_SECRET", "QUEUE_SECRET of template.yaml; made here", None, "wharfinger-queue", True),
    *(
        Parameter(f"{whose}_PASSWORD", f"Password of {of}", None, generated_from="[a-zA-Z0-9]{40}", required=True)
        for whose, of in (
            ("OWNER", "the database's owner"),
            ("API", "the login of brokers"),
            ("RELAY", "the login of relays"),
            ("WORKER", "the login of workers"),
            ("CLEANUP", "the login of cleanups and verifications"),
            ("QUEUE", "the user of RabbitMQ"),
        )
    ),
)


def template_values(of: Callable[[str], Any]) -> Manifest:
    """The chart's values for the Template's objects; `of` gives each parameter's."""
    return {
        "image": {
            "broker": of("BROKER_IMAGE"),
            "workerCpu": of("WORKER_IMAGE"),
            "workerGpu": of("GPU_WORKER_IMAGE"),
            "pullSecrets": of("PULL_SECRETS"),
        },
        "settings": {
            "FILE_RETENTION_DAYS": of("FILE_RETENTION_DAYS"),
            "JOB_RETENTION_DAYS": of("JOB_RETENTION_DAYS"),
        },
        "database": {
            "existingSecret": of("DATABASE_SECRET"),
            "caSecret": of("DATABASE_CA_SECRET"),
            "port": of("DATABASE_PORT"),
            "createLogins": True,
        },
        "queue": {
            "existingSecret": of("QUEUE_SECRET"),
            "caSecret": of("QUEUE_CA_SECRET"),
            "port": of("QUEUE_PORT"),
        },
        "adminKey": {"existingSecret": f"{of('NAME')}-admin-key"},
        "storage": {"claimName": CLAIM, "className": of("STORAGE_CLASS_NAME"), "size": of("STORAGE_SIZE")},
        "broker": {"replicas": of("BROKER_REPLICAS")},
        "relay": {"replicas": of("RELAY_REPLICAS")},
        "pools": [
            {
                "name": of("MODEL"),
                "model": of("MODEL"),
                "replicas": of("WORKER_REPLICAS"),
                "resources": _resources(of("WORKER_CPUS"), of("WORKER_MEMORY")),
            },
            {
                "name": of("GPU_MODEL"),
                "model": of("GPU_MODEL"),
                "engine": "ultralytics",
                "replicas": of("GPU_WORKER_REPLICAS"),
                "gpus": of("GPUS"),
                "tolerations": [GPU_TOLERATION],
                "resources": _resources(of("GPU_WORKER_CPUS"), of("GPU_WORKER_MEMORY")),
            },
        ],
        "cleanup": {"schedule": of("CLEANUP_SCHEDULE")},
        "route": {"enabled": True, "host": of("HOST"), "timeout": of("ROUTE_TIMEOUT")},
    }


def template() -> Manifest:
    """Of the service."""
    of = _stand_ins(PARAMETERS)
    objects = chart(of("NAME"), template_values(of))
    for one in objects:
        mark_settings(one, "${FILE_RETENTION_DAYS} ${JOB_RETENTION_DAYS}")
        make_authorities_optional(one, "${QUEUE_CA_FILE}")
        if one["kind"] == "Job":
            one["metadata"]["name"] = without_revision(one["metadata"]["name"]) + "-${REVISION}"
            one["spec"].setdefault("ttlSecondsAfterFinished", KEPT_SECONDS)
    labels = next(dict(one["metadata"]["labels"]) for one in objects if one["kind"] == "ConfigMap")
    key: Manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": f"{of('NAME')}-admin-key",
            "labels": labels | {"app.kubernetes.io/component": "secrets"},
        },
        "type": "Opaque",
        "stringData": {"api-key": "${ADMIN_API_KEY}"},
    }
    return _template(
        "wharfinger",
        "Wharfinger",
        "Takes custody of images and videos once and brings the model to them.\n\n"
        "Needs PostgreSQL, RabbitMQ, a Secret with the URLs of each (secrets.yaml makes them; evaluation.yaml runs the "
        "two for a first try), and a StorageClass with ReadWriteMany.",
        PARAMETERS,
        [key, *objects],
        message="Wharfinger comes up. Its address: oc get route ${NAME}. Its admin's API key: the Secret "
        "${NAME}-admin-key. Its pods wait for the Secrets ${DATABASE_SECRET} and ${QUEUE_SECRET}, its workers until "
        "their model is registered: see deploy/README.md.",
    )


def model_template() -> Manifest:
    """Of a Job that registers a model."""
    of = _stand_ins(MODEL_PARAMETERS)
    values = {
        "image": {"pullSecrets": of("PULL_SECRETS")},
        "database": {"existingSecret": of("DATABASE_SECRET"), "caSecret": of("DATABASE_CA_SECRET")},
        "queue": {"existingSecret": "p-queue-secret"},
        "storage": {"claimName": CLAIM},
        "pools": [{"name": of("MODEL"), "model": of("MODEL_FILE"), "engine": of("ENGINE"), "image": of("IMAGE")}],
    }
    job = registering_job(chart(of("NAME"), values), f"{of('NAME')}-model-${{REVISION}}", KEPT_SECONDS)
    make_authorities_optional(job, None)
    return _template(
        "wharfinger-model",
        "A model of Wharfinger's",
        "Puts a model that an image holds on the volume and registers it. Workers that wait for it start then.",
        MODEL_PARAMETERS,
        [job],
    )


def evaluation_template() -> Manifest:
    """Of a PostgreSQL and a RabbitMQ for a first try, and of the Secrets that the service's Template names."""
    of = _stand_ins(EVALUATION_PARAMETERS)
    name = of("NAME")
    server = {"className": of("STORAGE_CLASS_NAME"), "podSecurityContext": None}
    values: Manifest = {
        "image": {"pullSecrets": of("PULL_SECRETS")},
        "evaluation": {
            "enabled": True,
            "postgres": {**server, "image": of("POSTGRES_IMAGE"), "size": of("POSTGRES_SIZE")},
            "rabbitmq": {**server, "image": of("RABBITMQ_IMAGE"), "size": of("RABBITMQ_SIZE")},
        },
    }
    objects = []
    for one in chart(name, values):
        component = one["metadata"]["labels"]["app.kubernetes.io/component"]
        kind, own = one["kind"], one["metadata"]["name"].removeprefix(f"{name}-")
        if kind == "NetworkPolicy" and own in _REACHED:
            one["metadata"]["name"] = f"{name}-to-{_REACHED[own]}"
        elif component not in _REACHED.values() and own not in _REACHED.values():
            continue
        if kind == "Secret":
            one["stringData"] = {key: _with_parameters(key, text, own) for key, text in one["stringData"].items()}
            one["immutable"] = True
        objects.append(one)
    return _template(
        "wharfinger-evaluation",
        "Wharfinger's PostgreSQL and RabbitMQ, for a first try",
        "EVALUATION ONLY: one pod of each, without backups and without TLS; what they hold is lost with their volumes. "
        "With the two Secrets that template.yaml names, and passwords made now.",
        EVALUATION_PARAMETERS,
        _replaced(
            objects,
            {
                f"{name}-evaluation-database": "${DATABASE_SECRET}",
                f"{name}-evaluation-queue": "${QUEUE_SECRET}",
                f".{NAMESPACE}.svc:": ":",
            },
        ),
    )


_REACHED = {"to-database": "postgres", "to-queue": "rabbitmq"}
"""Policies that let the service's pods reach a server, and the server."""


def _stand_ins(parameters: Iterable[Parameter]) -> Callable[[str], Any]:
    return {
        parameter.name: parameter.stand_in for parameter in parameters if parameter.stand_in is not None
    }.__getitem__


def _resources(cpus: str, memory: str) -> Manifest:
    """A worker has a slot for each CPU of the limit, so it asks for as many."""
    return {"requests": {"cpu": cpus}, "limits": {"cpu": cpus, "memory": memory}}


def _with_parameters(key: str, text: str, secret: str) -> str:
    """A password, or a URL with one, of the chart's Secrets with a parameter in the password's place."""
    whose = "OWNER" if key == "password" else key.removesuffix("-url").upper()
    if secret.endswith("-queue"):
        whose = "QUEUE"
    changed, found = re.subn(r"(?<=:)[A-Za-z0-9]{32}(?=@)|\A[A-Za-z0-9]{32}\Z", f"${{{whose}_PASSWORD}}", text)
    assert found == 1, f"{secret}: {key} has no password"
    return changed


def _template(
    name: str,
    title: str,
    description: str,
    parameters: Iterable[Parameter],
    objects: Iterable[Manifest],
    message: str | None = None,
) -> Manifest:
    return {
        "apiVersion": "template.openshift.io/v1",
        "kind": "Template",
        "metadata": {
            "name": name,
            "annotations": {
                "openshift.io/display-name": title,
                "description": description,
                "tags": "inference,object-detection,yolo,openvino",
            },
        },
        **({"message": message} if message else {}),
        "parameters": [parameter.declaration() for parameter in parameters],
        "objects": [_parametrised(one, parameters) for one in objects],
    }


def _parametrised(node: Any, parameters: Iterable[Parameter]) -> Any:
    """With parameters in place of stand-ins: ${{NAME}} for a number, a list or null, ${NAME} within a text."""
    for parameter in parameters:
        whole = parameter.stand_in if parameter.rendered is None else parameter.rendered
        if (isinstance(node, int) or parameter.may_be_null) and node == whole:
            return f"${{{{{parameter.name}}}}}"
        if isinstance(node, str) and isinstance(parameter.stand_in, str | int):
            node = node.replace(str(parameter.stand_in), f"${{{parameter.name}}}")
    if isinstance(node, dict):
        return {_parametrised(key, parameters): _parametrised(value, parameters) for key, value in node.items()}
    if isinstance(node, list):
        return [_parametrised(one, parameters) for one in node]
    return node


def _replaced(node: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _replaced(value, texts) for key, value in node.items()}
    if isinstance(node, list):
        return [_replaced(one, texts) for one in node]
    if isinstance(node, str):
        for old, new in texts.items():
            node = node.replace(old, new)
    return node
