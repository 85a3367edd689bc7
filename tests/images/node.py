"""What a kubelet makes of objects: pods, as podman's containers on this machine's network.

It knows as much of Kubernetes as ours need, and refuses the rest: what it does not know would go untested."""

import base64
import itertools
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from tests.images.podman import Podman
from tests.support.kubernetes_api import NAMESPACE, TOKEN, KubernetesApi

Manifest = dict[str, Any]

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
READY_SECONDS = 60
JOB_SECONDS = 300
COMPONENT = "app.kubernetes.io/component"
BYTES = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
ADDRESSES = [f"127.0.1.{number}" for number in range(1, 33)]
LISTENING = ("WHARF_HOST", "WHARF_HEALTH_HOST")
KILLED = "137"


class KilledError(AssertionError):
    """A container was ended by SIGKILL."""


@dataclass
class Pod:
    """`folder`: of its volumes. `container`: podman's id of the one that runs, or ran last. `initializing`: the init
    container that runs. `logs`: of those that have ended. `killed`: how often one was."""

    name: str
    address: str
    labels: Mapping[str, str]
    spec: Manifest
    folder: Path
    container: str = ""
    initializing: str = ""
    logs: dict[str, str] = field(default_factory=dict)
    killed: int = 0

    @property
    def main(self) -> Manifest:
        [container] = self.spec["containers"]
        return dict(container)


class Node:
    """`objects`: of the namespace. `claims`: the folder of each volume, by its claim. `user`: a uid of the project's
    range, as OpenShift gives one; None: the images' own. `addressed`: each pod listens on an address of its own, of
    this machine's loopback, in place of all; so there can be two of a kind. `with` takes away every container that is
    left."""

    def __init__(
        self,
        podman: Podman,
        folder: Path,
        objects: Iterable[Manifest],
        *,
        claims: Mapping[str, Path],
        user: str | None,
        api: KubernetesApi | None = None,
        authority: Path | None = None,
        addressed: bool = False,
    ) -> None:
        self._podman = podman
        self._folder = folder
        self._objects = {(one["kind"], one["metadata"]["name"]): one for one in objects}
        self._claims = claims
        self.user = user
        self._api = api
        self._authority = authority
        self._addressed = addressed
        self._numbers = itertools.count()
        self._containers: list[str] = []
        self.pods: list[Pod] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for container in list(self._containers):
            self._remove(container)

    def find(self, kind: str, component: str, **labels: str) -> Manifest:
        """The object of this kind with these labels."""
        wanted = {COMPONENT: component, **labels}
        every = [one for (found, _), one in self._objects.items() if found == kind]
        [one] = [one for one in every if wanted.items() <= one["metadata"]["labels"].items()]
        return one

    def secret(self, name: str) -> dict[str, bytes]:
        found = self._objects["Secret", name]
        decoded = {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}
        return decoded | {key: str(value).encode() for key, value in found.get("stringData", {}).items()}

    def start(self, workload: Manifest) -> Pod:
        """Returns once the pod is ready."""
        pod = self._initialized(workload)
        self._begin_and_await(pod)
        return pod

    def finish(self, workload: Manifest) -> Pod:
        """Returns once its pod has ended, and well. One that was killed is followed by another, as often as a Job's
        backoffLimit says."""
        failures_left = _spec(workload).get("backoffLimit", 0)
        while True:
            try:
                pod = self._initialized(workload)
                self._run(pod, pod.main)
            except KilledError:
                failures_left -= 1
                if failures_left < 0:
                    raise
            else:
                return pod

    def alive(self, pod: Pod) -> bool:
        return self._probe(pod, "livenessProbe")

    def kill(self, pod: Pod) -> None:
        """With -9, whatever runs in it. Whoever waits for its end goes on as a kubelet does: see `restart`."""
        self._podman("kill", "--signal=KILL", pod.container)

    def restart(self, pod: Pod) -> None:
        """What was killed runs anew, in the same pod, with its volumes as they are. Returns once it is ready."""
        with suppress(KilledError):
            self._end(pod, pod.main, pod.container)
        self._begin_and_await(pod)

    def stop(self, pod: Pod) -> float:
        """Seconds until it ended, with status 0 and by itself."""
        assert "lifecycle" not in pod.main
        took = self.evict(pod)
        self._end(pod, pod.main, pod.container)
        assert took < pod.spec["terminationGracePeriodSeconds"]
        return took

    def evict(self, pod: Pod) -> float:
        """Whatever it is doing. Seconds until its container has ended."""
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        began = time.monotonic()
        self._podman("stop", "--time", str(grace), pod.container, seconds=grace + 30)
        return time.monotonic() - began

    def _initialized(self, workload: Manifest) -> Pod:
        pod = self._made(workload)
        for container in pod.spec.get("initContainers", []):
            pod.initializing = container["name"]
            self._run(pod, container)
        pod.initializing = ""
        return pod

    def _run(self, pod: Pod, container: Manifest) -> None:
        """To its end. What was killed is run anew, unless the pod is one that is never restarted."""
        while True:
            pod.container = self._begin(pod, container)
            try:
                self._end(pod, container, pod.container)
            except KilledError:
                if pod.spec.get("restartPolicy") == "Never":
                    raise
            else:
                return

    def _begin_and_await(self, pod: Pod) -> None:
        pod.container = self._begin(pod, pod.main)
        startup = pod.main["startupProbe"]
        self._await(pod, "startupProbe", startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3))
        self._await(pod, "readinessProbe", READY_SECONDS)

    def _made(self, workload: Manifest) -> Pod:
        kind, number = workload["kind"], next(self._numbers)
        template = workload if kind == "Pod" else _spec(workload)["template"]
        name = workload["metadata"]["name"] + f"-{number}" * (kind != "Pod")
        pod = Pod(name, ADDRESSES[number], template["metadata"]["labels"], template["spec"], self._folder / name)
        pod.folder.mkdir()
        self.pods.append(pod)
        return pod

    def _begin(self, pod: Pod, container: Manifest) -> str:
        """The id of a container that runs."""
        environment = self._environment(pod, container)
        words = [_expanded(word, environment) for key in ("command", "args") for word in container.get(key, [])]
        entry = ["--entrypoint="] if "command" in container else []
        options = [
            *("--detach", "--network=host", *self._podman.without_shells, *self._security(pod, container), *entry),
            *(f"--env={name}={value}" for name, value in environment.items()),
            *(f"--volume={mount}" for mount in self._mounts(pod, container)),
            *(f"--add-host={name}:127.0.0.1" for kind, name in self._objects if kind == "Service"),
            *_limits(container["resources"].get("limits", {})),
        ]
        identity = self._podman("run", *options, container["image"], *words).strip()
        self._containers.append(identity)
        return identity

    def _end(self, pod: Pod, container: Manifest, identity: str) -> None:
        status = self._podman("wait", identity, seconds=JOB_SECONDS).strip()
        log = pod.logs[container["name"]] = self._podman.log(identity)
        self._remove(identity)
        ended = f"{container['name']} of {pod.name} ended with {status}:\n{log}"
        if status == KILLED:
            pod.killed += 1
            raise KilledError(ended)
        assert status == "0", ended

    def _remove(self, identity: str) -> None:
        self._podman("rm", "--force", "--time", "0", identity)
        self._containers.remove(identity)

    def _security(self, pod: Pod, container: Manifest) -> Iterator[str]:
        whole, own = pod.spec["securityContext"], container["securityContext"]
        assert whole == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            # Of volumes that get a group of their own, and none does here.
            "fsGroupChangePolicy": "OnRootMismatch",
        }
        assert set(own) == {"allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem"}
        if self.user is not None:
            yield f"--user={self.user}:0"
        else:
            user = str(self._podman.configuration(container["image"])["User"])
            assert int(user.split(":")[0]) > 0
        yield from (f"--cap-drop={capability}" for capability in own["capabilities"]["drop"])
        if own["readOnlyRootFilesystem"]:
            yield from ("--read-only", "--read-only-tmpfs=false")
        if not own["allowPrivilegeEscalation"]:
            yield "--security-opt=no-new-privileges"

    def _environment(self, pod: Pod, container: Manifest) -> dict[str, str]:
        found: dict[str, str] = {}
        if self._has_token(pod):
            assert self._api
            address = urlsplit(self._api.url)
            found |= {"KUBERNETES_SERVICE_HOST": str(address.hostname), "KUBERNETES_SERVICE_PORT": str(address.port)}
        for source in container.get("envFrom", []):
            [(kind, reference)] = source.items()
            assert kind == "configMapRef"
            found |= self._objects["ConfigMap", reference["name"]]["data"]
        for entry in container.get("env", []):
            if "value" in entry:
                found[entry["name"]] = _expanded(entry["value"], found)
                continue
            [(kind, reference)] = entry["valueFrom"].items()
            match kind:
                case "secretKeyRef":
                    found[entry["name"]] = self.secret(reference["name"])[reference["key"]].decode()
                case "fieldRef":
                    assert reference["fieldPath"] == "metadata.name"
                    found[entry["name"]] = pod.name
                case _:
                    raise ValueError(f"{entry['name']}: no value is made from {kind}")
        return found | (dict.fromkeys(LISTENING, pod.address) if self._addressed else {})

    def _mounts(self, pod: Pod, container: Manifest) -> Iterator[str]:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            place, writable = self._volume(pod, volumes[mount["name"]])
            if "subPath" in mount:
                place /= mount["subPath"]
                # A kubelet would make a folder of its own, whatever is to be there.
                assert place.exists(), f"{container['name']} of {pod.name}: {mount['subPath']} is not on the volume"
            yield f"{place}:{mount['mountPath']}" + ("" if writable and not mount.get("readOnly") else ":ro")
        if self._has_token(pod):
            assert self._authority
            place = pod.folder / "token"
            content = {"token": TOKEN.encode(), "ca.crt": self._authority.read_bytes(), "namespace": NAMESPACE.encode()}
            _write(place, content)
            yield f"{place}:{SERVICE_ACCOUNT}:ro"

    def _volume(self, pod: Pod, volume: Manifest) -> tuple[Path, bool]:
        """Where it is, and whether anybody may write to it."""
        [kind] = set(volume) - {"name"}
        source = volume[kind]
        place = pod.folder / volume["name"]
        match kind:
            case "persistentVolumeClaim":
                assert ("PersistentVolumeClaim", source["claimName"]) in self._objects
                return self._claims[source["claimName"]], True
            case "emptyDir":
                if not place.exists():
                    place.mkdir()
                    place.chmod(0o777)
                return place, True
            case "secret" if source.get("optional") and ("Secret", source["secretName"]) not in self._objects:
                _write(place, {}, 0o644)
                return place, False
            case "secret" | "configMap":
                if kind == "secret":
                    content = self.secret(source["secretName"])
                else:
                    content = {
                        key: text.encode() for key, text in self._objects["ConfigMap", source["name"]]["data"].items()
                    }
                if "items" in source:
                    content = {item["path"]: content[item["key"]] for item in source["items"]}
                _write(place, content, source.get("defaultMode", 0o644))
                return place, False
            case _:
                raise ValueError(f"{pod.name}: no volume is made from {kind}")

    def _has_token(self, pod: Pod) -> bool:
        return bool(pod.spec.get("automountServiceAccountToken", True))

    def _await(self, pod: Pod, kind: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._probe(pod, kind):
            state = self._podman("inspect", "--format", "{{.State.Status}}", pod.container).strip()
            if time.monotonic() > deadline or state != "running":
                raise AssertionError(f"{pod.name} is {state}, and fails its {kind}:\n{self._podman.log(pod.container)}")
            time.sleep(0.2)

    def _probe(self, pod: Pod, kind: str) -> bool:
        probe = pod.main[kind]
        wanted = probe["httpGet"]
        [port] = [port["containerPort"] for port in pod.main["ports"] if port["name"] == wanted["port"]]
        try:
            answer = httpx.get(
                f"http://{pod.address}:{port}{wanted['path']}", trust_env=False, timeout=probe.get("timeoutSeconds", 1)
            )
        except httpx.TransportError:
            return False
        return 200 <= answer.status_code < 400


def _spec(workload: Manifest) -> Manifest:
    """A CronJob's is that of its Jobs."""
    spec = workload.get("spec", {})
    return dict(spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec)


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """$(NAME) is a variable's value where there is one, and $$ a dollar."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda found: environment.get(found[1], found[0]) if found[1] else "$", text)


def _write(folder: Path, content: Mapping[str, bytes], mode: int = 0o644) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(mode)


def _limits(limits: Mapping[str, Any]) -> Iterator[str]:
    for name, quantity in limits.items():
        match name:
            case "memory":
                yield f"--memory={int(quantity[:-2]) * BYTES[quantity[-2:]]}"
            case "cpu":
                yield f"--cpus={quantity}"
            case _:
                raise ValueError(f"no limit is known of {name}")
