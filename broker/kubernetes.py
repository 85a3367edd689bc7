"""One namespace of the Kubernetes API. The only module that knows the `kubernetes` package, which it imports when it is
first asked to connect: where nobody asks, it may be missing."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

OURS = "app.kubernetes.io/part-of=wharfinger"
"""The label of all that the chart and the OpenShift template make."""

INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
POOL = "wharfinger/pool"

ANSWER_SECONDS = 5.0
"""Longest for one answer; each of a log's lines may take `QUIET_SECONDS`."""

QUIET_SECONDS = 60.0
"""After which a log is asked for anew: a dead connection says nothing either."""

PAGE = 500
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Object = Mapping[str, Any]
"""A Kubernetes object as its JSON, with whatever a newer cluster puts into it."""


class KubernetesError(Exception):
    """The API did not do what it was asked. `status`: of its answer, None where there was none. The message says why,
    in its own words where it has some."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Nobody answered, or somebody who is overloaded, restarts, or does not reach a node just now."""
        return self.status is None or self.status == 429 or self.status >= 500


class Kubernetes:
    """What one login may do in `namespace`. Blocking: it belongs into a thread. Its methods raise `KubernetesError`."""

    def __init__(self, api: "ApiClient", namespace: str, context: str | None) -> None:
        self._api = api
        self.namespace = namespace
        self.context = context
        """The kubeconfig's whose login it is; None: the pod's service account."""

    @classmethod
    def connect(
        cls,
        kubeconfig: Path | None = None,
        *,
        context: str | None = None,
        namespace: str | None = None,
        usual: bool = False,
    ) -> Self:
        """By this kubeconfig; where None, as the pod's service account; with `usual` as kubectl would, which takes a
        pod's service account only where there is no kubeconfig. Nothing is sent yet."""
        try:
            from kubernetes import client
            from kubernetes import config as untyped
        except ImportError:
            raise KubernetesError("The kubernetes package is missing: pip install 'wharfinger[cluster]'.") from None
        config: Any = untyped
        configuration = client.Configuration()
        configuration.retries = False
        try:
            named = kubeconfig is not None or context is not None or (usual and _has_kubeconfig(config))
            if not named and (SERVICE_ACCOUNT / "token").exists():
                config.load_incluster_config(client_configuration=configuration)
                own, name = (SERVICE_ACCOUNT / "namespace").read_text().strip(), None
            elif kubeconfig is not None or usual:
                file = str(kubeconfig) if kubeconfig else None
                config.load_kube_config(file, context=context, client_configuration=configuration)
                contexts, current = config.list_kube_config_contexts(file)
                chosen = next((each for each in contexts if each["name"] == context), current)
                own, name = chosen["context"].get("namespace", "default"), chosen["name"]
            else:
                raise KubernetesError("This process has no service account's token")
        except (config.ConfigException, OSError) as error:
            raise KubernetesError(f"No way to the Kubernetes API: {error}") from error
        return cls(client.ApiClient(configuration), namespace or own, name)

    def pods(self, selector: str) -> list[Object]:
        return self._list("/api/v1", "pods", selector)

    def deployments(self, selector: str) -> list[Object]:
        return self._list("/apis/apps/v1", "deployments", selector)

    def cron_jobs(self, selector: str) -> list[Object]:
        return self._list("/apis/batch/v1", "cronjobs", selector)

    def warnings(self, kind: str, name: str) -> list[str]:
        """What the cluster complained of about an object lately, the newest last."""
        about = f"involvedObject.kind={kind},involvedObject.name={name},type=Warning"
        found = self._list("/api/v1", "events", fields=about)
        return [event.get("message", "") for event in sorted(found, key=_last_seen)]

    def job(self, name: str) -> Object:
        return self._ask("GET", f"{self._jobs}/{name}")

    def create_job(self, job: Object) -> Object:
        """409: there is one by its name. 422: the API finds it malformed, or a policy refuses it."""
        return self._ask("POST", self._jobs, body=job)

    def delete_job(self, name: str) -> None:
        """With its pods."""
        self._ask("DELETE", f"{self._jobs}/{name}", {"propagationPolicy": "Background"})

    def log(self, pod: str, container: str, *, skip: int = 0) -> Iterator[str]:
        """The lines from number `skip` on, as they come, until the container ends. Raises without a
        status where the connection breaks, or nothing comes for `QUIET_SECONDS`: the caller asks again."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        query = {"container": container, "follow": "true"}
        with _told(f"GET {path}"):
            answer = self._send("GET", path, query, seconds=(ANSWER_SECONDS, QUIET_SECONDS))
            if answer.status >= 300:
                raise _refusal(answer.status, answer.read())
            rest, number = b"", 0
            try:
                for chunk in answer.response.stream(amt=None):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        number += 1
                        if number > skip:
                            yield line.decode(errors="replace")
            finally:
                answer.response.close()
            if rest and number >= skip:
                yield rest.decode(errors="replace")

    def may(self, verb: str, resource: str, group: str = "", subresource: str = "") -> bool:
        """Whether the login has this right in the namespace, as the API itself judges."""
        asked = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "namespace": self.namespace,
                    "verb": verb,
                    "group": group,
                    "resource": resource,
                    "subresource": subresource,
                }
            },
        }
        answer = self._ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=asked)
        return bool(answer["status"]["allowed"])

    def groups(self) -> set[str]:
        """The groups of kinds that the cluster knows: keda.sh is among them where KEDA is installed."""
        return {group["name"] for group in self._ask("GET", "/apis")["groups"]}

    @property
    def _jobs(self) -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/jobs"

    def _list(self, group: str, kind: str, labels: str = "", *, fields: str = "") -> list[Object]:
        path = f"{group}/namespaces/{self.namespace}/{kind}"
        found: list[Object] = []
        query = {"limit": str(PAGE)}
        query |= {"labelSelector": labels} if labels else {}
        query |= {"fieldSelector": fields} if fields else {}
        following = ""
        restarted = False
        while True:
            try:
                page = self._ask("GET", path, {**query, "continue": following} if following else query)
            except KubernetesError as error:
                # The page's token has expired: the list begins anew.
                if error.status != 410 or restarted:
                    raise
                found, following, restarted = [], "", True
                continue
            found += page["items"]
            following = page["metadata"].get("continue", "")
            if not following:
                return found

    def _ask(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Object | None = None
    ) -> Object:
        with _told(f"{method} {path}"):
            answer = self._send(method, path, query, body)
            content = answer.read()
            if answer.status >= 300:
                raise _refusal(answer.status, content)
            parsed: Object = json.loads(content)
        return parsed

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        seconds: tuple[float, float] = (ANSWER_SECONDS, ANSWER_SECONDS),
    ) -> Any:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})
        request = self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        return self._api.call_api(*request, _request_timeout=seconds)


def _has_kubeconfig(config: Any) -> bool:
    """In one of the places that KUBECONFIG names, or the usual one."""
    places = config.KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep)
    try:
        return any(Path(place).expanduser().is_file() for place in places)
    except RuntimeError:  # A container's user without a name, and so without a home.
        return False


@contextmanager
def _told(deed: str) -> Iterator[None]:
    """The package's own errors as ours."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (HTTPError, ApiException, OSError) as error:
        raise KubernetesError(f"The Kubernetes API does not answer ({deed}): {_short(error)}") from error
    except (ValueError, KeyError) as error:
        raise KubernetesError(f"The Kubernetes API answers what is none of its own ({deed})") from error


def _refusal(status: int, content: bytes) -> KubernetesError:
    try:
        message = json.loads(content)["message"]
    except (ValueError, KeyError, TypeError):
        message = content[:200].decode(errors="replace")
    return KubernetesError(f"The Kubernetes API refuses ({status}): {message}", status)


def _last_seen(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))


def _short(error: Exception) -> str:
    return re.sub(r"<urllib3[^>]*>:? ?|HTTPS?ConnectionPool\([^)]*\):? ?", "", str(error)) or type(error).__name__
