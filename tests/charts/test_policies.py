"""What an admin's admission rules ask for holds of every object that the chart makes."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.rendering import CHART, QUEUED, VALUES, Pods, objects, pods_of, rendered, run, selects

RENDERED = [pytest.param(name, id=name) for name in VALUES]
SECRET = re.compile(r"wharf_[A-Za-z0-9]{32}|://[^/@$]+:[^/@$]+@")


def pods(name: str) -> list[Pods]:
    return list(pods_of(objects(name)))


def of_kind(name: str, kind: str) -> list[dict[str, Any]]:
    return [found for found in objects(name) if found["kind"] == kind]


@pytest.mark.parametrize("name", RENDERED)
class TestEveryPod:
    def test_is_restricted(self, name: str) -> None:
        """By the Pod Security standard of that name."""
        for each in pods(name):
            context = each.spec["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert context["fsGroupChangePolicy"] == "OnRootMismatch"
            assert not {"hostNetwork", "hostPID", "hostIPC"} & each.spec.keys()
            for container in each.containers:
                own = container["securityContext"]
                assert own["allowPrivilegeEscalation"] is False
                assert own["readOnlyRootFilesystem"] is True
                assert own["capabilities"] == {"drop": ["ALL"]}
                assert "privileged" not in own
                assert all("hostPort" not in port for port in container.get("ports", []))
            kinds = {kind for volume in each.spec["volumes"] for kind in volume if kind != "name"}
            assert kinds <= {"emptyDir", "secret", "persistentVolumeClaim"}

    def test_takes_the_uid_that_the_cluster_gives(self, name: str) -> None:
        for each in pods(name):
            contexts = [each.spec["securityContext"], *(one["securityContext"] for one in each.containers)]
            if each.is_ours:
                assert not {"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"} & set().union(*contexts)

    def test_has_no_token(self, name: str) -> None:
        for each in pods(name):
            assert each.spec["automountServiceAccountToken"] is False
            assert each.spec["enableServiceLinks"] is False
        for account in of_kind(name, "ServiceAccount"):
            assert account["automountServiceAccountToken"] is False

    def test_has_an_account_that_is_there(self, name: str) -> None:
        accounts = {account["metadata"]["name"] for account in of_kind(name, "ServiceAccount")}
        for each in pods(name):
            assert each.spec.get("serviceAccountName", next(iter(accounts))) in accounts
        assert not of_kind(name, "Role") + of_kind(name, "ClusterRole") + of_kind(name, "RoleBinding")

    def test_says_what_it_needs(self, name: str) -> None:
        for each in pods(name):
            for container in each.containers:
                assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
                assert "memory" in container["resources"]["limits"]

    def test_writes_only_where_it_has_a_volume(self, name: str) -> None:
        for each in pods(name):
            volumes = {volume["name"] for volume in each.spec["volumes"]}
            volumes |= {claim["metadata"]["name"] for claim in each.owner["spec"].get("volumeClaimTemplates", [])}
            for container in each.containers:
                mounts = container["volumeMounts"]
                assert {mount["name"] for mount in mounts} <= volumes
                assert "/tmp" in {mount["mountPath"] for mount in mounts}
                paths = [mount["mountPath"] for mount in mounts]
                assert len(paths) == len(set(paths))
            for volume in each.spec["volumes"]:
                if each.is_ours and "emptyDir" in volume:
                    assert volume["emptyDir"]["sizeLimit"] == "1Gi"

    def test_that_serves_is_probed(self, name: str) -> None:
        for each in pods(name):
            if each.owner["kind"] not in ("Deployment", "StatefulSet"):
                continue
            [container] = each.spec["containers"]
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                [(how, where)] = [
                    (key, value) for key, value in container[probe].items() if key in ("httpGet", "tcpSocket", "exec")
                ]
                assert how == "exec" or where["port"] in ports
            if each.is_ours:
                assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
                assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"

    def test_waits_for_the_migration(self, name: str) -> None:
        for each in pods(name):
            if each.is_ours and each.component not in ("migrate", "test"):
                first = each.spec["initContainers"][0]
                assert first["args"][:2] == ["migrate", "--wait"]
                mounts_files = any(mount["name"] == "files" for one in each.containers for mount in one["volumeMounts"])
                given = each.environment(first, objects(name))
                assert ("WHARF_VOLUME" in given) == mounts_files

    def test_is_spread_over_nodes_and_zones(self, name: str) -> None:
        for each in pods(name):
            if each.owner["kind"] == "Deployment":
                spread = each.spec["topologySpreadConstraints"]
                assert {one["topologyKey"] for one in spread} == {
                    "kubernetes.io/hostname",
                    "topology.kubernetes.io/zone",
                }
                for one in spread:
                    assert one["whenUnsatisfiable"] == "ScheduleAnyway"
                    assert selects(one["labelSelector"], each.labels)

    def test_of_a_deployment_is_selected_by_it_alone(self, name: str) -> None:
        owners = [each for each in pods(name) if each.owner["kind"] in ("Deployment", "StatefulSet")]
        for owner in owners:
            selected = [each.name for each in pods(name) if selects(owner.owner["spec"]["selector"], each.labels)]
            assert selected == [owner.name]

    def test_has_a_network_policy_for_both_ways(self, name: str) -> None:
        policies = [policy["spec"] for policy in of_kind(name, "NetworkPolicy")]
        if name == "little":
            assert policies == []
            return
        for each in pods(name):
            types = {
                kind
                for policy in policies
                if selects(policy["podSelector"], each.labels)
                for kind in policy["policyTypes"]
            }
            assert types == {"Ingress", "Egress"}

    def test_that_is_away_is_one_of_a_kind_at_a_time(self, name: str) -> None:
        budgets = of_kind(name, "PodDisruptionBudget")
        for each in pods(name):
            if each.owner["kind"] == "Deployment" and name != "little":
                [budget] = [one for one in budgets if selects(one["spec"]["selector"], each.labels)]
                assert budget["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("name", RENDERED)
class TestEveryObject:
    def test_has_a_name_that_fits(self, name: str) -> None:
        for found in objects(name):
            # A CronJob's Jobs have a time behind its name, KEDA's HPA has keda-hpa- before a ScaledObject's.
            limit = {"CronJob": 52, "ScaledObject": 63 - len("keda-hpa-")}.get(found["kind"], 63)
            assert len(found["metadata"]["name"]) <= limit
            assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", found["metadata"]["name"])
        names = [(found["kind"], found["metadata"]["name"]) for found in objects(name)]
        assert len(names) == len(set(names))

    def test_has_labels_that_fit(self, name: str) -> None:
        for found in objects(name):
            for value in found["metadata"]["labels"].values():
                assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value)
            assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == "wharf"

    def test_but_a_secret_holds_no_secret(self, name: str) -> None:
        for found in objects(name):
            if found["kind"] != "Secret":
                assert not SECRET.search(str(found))

    def test_finds_the_secrets_that_the_chart_makes(self, name: str) -> None:
        made = {
            found["metadata"]["name"]: found.get("data", {}).keys() | found.get("stringData", {}).keys()
            for found in of_kind(name, "Secret")
        }
        for each in pods(name):
            for container in each.containers:
                for variable in container["env"]:
                    wanted = variable.get("valueFrom", {}).get("secretKeyRef")
                    if wanted and wanted["name"].startswith("wharf-wharfinger"):
                        assert wanted["key"] in made[wanted["name"]]
                    if re.search("URL|KEY|PASS", variable["name"]) and variable["name"] not in ("WHARF_URL",):
                        assert wanted, variable["name"]


@pytest.mark.parametrize("name", RENDERED)
class TestTheVolume:
    def test_is_read_only_for_workers(self, name: str) -> None:
        workers = [each for each in pods(name) if each.component == "worker"]
        assert workers or name == "little"
        for each in workers:
            for container in each.containers:
                files = {m["mountPath"]: m for m in container["volumeMounts"] if m["name"] == "files"}
                writable = {path for path, mount in files.items() if not mount.get("readOnly")}
                if container["name"] == "worker":
                    assert files.keys() == {f"/srv/wharf/{part}" for part in ("blobs", "models", "volume-id")}
                assert writable == ({"/srv/wharf/models"} if container["name"] == "register-model" else set())
                for path, mount in files.items():
                    assert path == "/srv/wharf" or mount["subPath"] == path.removeprefix("/srv/wharf/")

    def test_is_one_claim(self, name: str) -> None:
        claims = {
            volume["persistentVolumeClaim"]["claimName"]
            for each in pods(name)
            for volume in each.spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        made = {claim["metadata"]["name"] for claim in of_kind(name, "PersistentVolumeClaim")}
        assert claims == (made or {"files"})


def test_a_worker_waits_for_its_model_where_its_image_has_none() -> None:
    waits = {
        each.labels["wharfinger/pool"]: each.spec["initContainers"][1]["args"]
        for each in pods("gpu")
        if each.component == "worker"
    }
    assert waits == {
        "yolo11n": ["models", "wait", "yolo11n"],
        "street-scenes": ["models", "add", "/models/street.pt", "--name", "street-scenes", "--engine", "ultralytics"],
    }


def test_a_gpu_is_asked_for_once_and_not_twice_in_a_rollout() -> None:
    [deployment] = [o for o in of_kind("gpu", "Deployment") if o["metadata"]["name"].endswith("street-scenes")]
    spec = deployment["spec"]
    [container] = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert container["image"] == "registry.example.com/ml/street:3"
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] == 900


def test_keda_counts_the_backlog_and_a_queue_wakes_a_pool() -> None:
    for scaled in of_kind("keda-postgresql", "ScaledObject"):
        triggers = scaled["spec"]["triggers"]
        assert scaled["spec"]["fallback"] == {
            "behavior": "currentReplicasIfHigher",
            "failureThreshold": 5,
            "replicas": 1,
        }
        assert [one["type"] for one in triggers] == ["postgresql", "rabbitmq", "rabbitmq"]
        pool = scaled["metadata"]["labels"]["wharfinger/pool"]
        assert f"pool = '{pool}'" in triggers[0]["metadata"]["query"]
        queues = [one["metadata"]["queueName"] for one in triggers[1:]]
        assert queues == [f"wharf.v1.{pool}.interactive", f"wharf.v1.{pool}.batch"]
        authentications = {o["metadata"]["name"] for o in of_kind("keda-postgresql", "TriggerAuthentication")}
        assert {one["authenticationRef"]["name"] for one in triggers} <= authentications
        [target] = [
            o for o in of_kind("keda-postgresql", "Deployment") if o["metadata"]["name"] == scaled["metadata"]["name"]
        ]
        assert "replicas" not in target["spec"]
    [queue] = [
        o for o in of_kind("keda-postgresql", "TriggerAuthentication") if o["metadata"]["name"].endswith("queue")
    ]
    [config] = queue["spec"]["configMapTargetRef"]
    [found] = [o for o in of_kind("keda-postgresql", "ConfigMap") if o["metadata"]["name"] == config["name"]]
    assert found["data"][config["key"]] == "enable"
    [scaled] = of_kind("keda-prometheus", "ScaledObject")
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["metadata"]["query"] == 'max(wharf_pool_backlog{pool="yolo11n",namespace="ml"})'
    assert of_kind("keda-prometheus", "TriggerAuthentication") == []


def test_on_openshift_the_evaluation_fixes_no_uid_either() -> None:
    for each in pods_of(rendered(VALUES["evaluation"], "--api-versions", "security.openshift.io/v1")):
        assert "runAsUser" not in each.spec["securityContext"]
    fixed = [each.component for each in pods("evaluation") if "runAsUser" in each.spec["securityContext"]]
    assert sorted(fixed) == ["postgres", "rabbitmq"]


def test_an_upgrade_keeps_what_cannot_be_changed(tmp_path: Path) -> None:
    """Selectors, claims of StatefulSets and the made claim; a Job, which can change in nothing, gets another name."""
    next_chart = tmp_path / "wharfinger"
    shutil.copytree(CHART, next_chart)
    about = (next_chart / "Chart.yaml").read_text()
    (next_chart / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion):.*$", r'\1: "9.9.9"', about))
    values = VALUES["evaluation"] | {"pools": [{"name": "a"}, {"name": "b"}]}
    changes = {"image": {"tag": "9"}, "podLabels": {"new": "label"}, "settings": {"LOG_LEVEL": "debug"}}
    before = rendered(values)
    after = rendered(values | changes, "--is-upgrade", chart=next_chart)

    def fixed(several: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
        return {
            (o["kind"], o["metadata"]["name"]): (
                o["spec"].get("selector"),
                o["spec"].get("volumeClaimTemplates"),
                o["spec"].get("serviceName"),
            )
            for o in several
            if o["kind"] in ("Deployment", "StatefulSet", "Service")
        }

    assert fixed(before) == fixed(after)
    claims = [[o["spec"] for o in several if o["kind"] == "PersistentVolumeClaim"] for several in (before, after)]
    assert claims[0] == claims[1]
    [job] = [o["metadata"]["name"] for o in before if o["kind"] == "Job"]
    assert re.fullmatch("wharf-wharfinger-migrate-1-[0-9a-f]{8}", job)
    # Rendered without a release, as by GitOps, the revision is always 1: another Job has another name all the same.
    assert [o["metadata"]["name"] for o in after if o["kind"] == "Job"] != [job]
    assert [o["metadata"]["name"] for o in rendered(values) if o["kind"] == "Job"] == [job]
    sums = [
        {
            o["metadata"]["name"]: o["spec"]["template"]["metadata"]["annotations"]["wharfinger/settings"]
            for o in several
            if o["kind"] == "Deployment"
        }
        for several in (before, after)
    ]
    assert all(sums[0][name] != sums[1][name] for name in sums[0])


def test_policies_let_through_what_is_needed_and_no_more() -> None:
    def reached(policy: str, name: str) -> Any:
        [found] = [
            o["spec"] for o in of_kind(name, "NetworkPolicy") if o["metadata"]["name"] == f"wharf-wharfinger-{policy}"
        ]
        return found

    deny = reached("deny", "everything")
    assert "ingress" not in deny
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert all(selects(deny["podSelector"], each.labels) for each in pods("everything"))
    assert {port["port"] for rule in deny["egress"] for port in rule["ports"]} == {53, 5353, 15012}
    assert {port["port"] for rule in reached("deny", "external")["egress"] for port in rule["ports"]} == {53, 5353}
    # Through the pooler, and past it.
    ports = [{"port": 6432, "protocol": "TCP"}, {"port": 5432, "protocol": "TCP"}]
    assert reached("to-database", "everything")["egress"] == [
        {"ports": ports, "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    ]
    assert reached("to-database", "external")["egress"] == [{"ports": [{"port": 5432, "protocol": "TCP"}]}]
    [metrics] = reached("metrics", "external")["ingress"]
    elsewhere = metrics["from"][1]["namespaceSelector"]
    for namespace in ("monitoring", "openshift-user-workload-monitoring"):
        assert selects(elsewhere, {"kubernetes.io/metadata.name": namespace})
    assert not selects(elsewhere, {"kubernetes.io/metadata.name": "somebody-s"})
    to_queue = reached("to-queue", "everything")
    assert to_queue["egress"] == [
        {"ports": [{"port": 5671, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    ]
    allowed = {each.component for each in pods("everything") if selects(to_queue["podSelector"], each.labels)}
    assert allowed == {"relay", "worker"}
    to_collector = reached("to-collector", "everything")
    assert to_collector["egress"] == [{"ports": [{"port": 4318, "protocol": "TCP"}], "to": [{"namespaceSelector": {}}]}]
    allowed = {each.component for each in pods("everything") if selects(to_collector["podSelector"], each.labels)}
    assert allowed == {"broker", "relay", "worker"}
    clients = reached("broker", "everything")["ingress"][0]["from"]
    assert {"namespaceSelector": {}} in clients
    assert reached("rabbitmq", "evaluation")["ingress"][0]["ports"] == [{"port": 5672, "protocol": "TCP"}]


def test_secrets_and_the_claim_outlive_the_release() -> None:
    kept = {
        o["metadata"]["name"]
        for o in rendered(QUEUED)
        if o["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }
    assert kept == {"wharf-wharfinger-files", "wharf-wharfinger-admin-key"}


def test_a_rollout_has_failed_no_sooner_than_its_pods_may_give_up() -> None:
    for each in pods("gpu"):
        if each.owner["kind"] == "Deployment":
            wait = float(each.spec["initContainers"][0]["args"][2])
            startup = each.spec["containers"][0]["startupProbe"]
            longest = wait + startup["periodSeconds"] * startup["failureThreshold"]
            assert each.owner["spec"]["progressDeadlineSeconds"] > longest, each.name


def test_a_migration_is_tried_again_for_hours_and_never_cut_short() -> None:
    [job] = of_kind("external", "Job")
    assert job["spec"]["backoffLimit"] >= 100
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
    assert "activeDeadlineSeconds" not in job["spec"]


def test_the_migration_of_a_release_that_was_rolled_back_to_ends_well() -> None:
    """helm starts it anew, and finds the database ahead."""
    [job] = of_kind("external", "Job")
    assert "--allow-newer" in job["spec"]["template"]["spec"]["containers"][0]["args"]


def test_a_drained_node_s_cleanup_is_begun_again_and_one_that_has_ended_is_not() -> None:
    for job in of_kind("external", "CronJob"):
        spec = job["spec"]["jobTemplate"]["spec"]
        [container] = spec["template"]["spec"]["containers"]
        evicted, ended = spec["podFailurePolicy"]["rules"]
        assert (evicted["action"], evicted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
        assert ended == {
            "action": "FailJob",
            "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [1]},
        }
        # Policies of this kind ask for it.
        assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_each_process_is_told_of_a_url_past_the_pooler() -> None:
    for each in pods("everything"):
        for container in each.containers:
            given = each.environment(container, objects("everything"))
            if "WHARF_DATABASE_URL" in given:
                pooled, direct = (given[f"WHARF_{way}DATABASE_URL"]["secretKeyRef"] for way in ("", "DIRECT_"))
                assert direct == {**pooled, "key": f"{pooled['key']}-direct"}
    assert "WHARF_DIRECT_DATABASE_URL" not in str(objects("external"))


@pytest.mark.parametrize("name", RENDERED)
def test_no_variable_is_named_twice(name: str) -> None:
    """A server-side apply, as helm 4 does it, refuses that."""
    for each in pods(name):
        for container in each.containers:
            names = [variable["name"] for variable in container["env"]]
            assert len(names) == len(set(names)), f"{each.name}, {container['name']}"


def test_a_worker_has_the_environment_that_its_pool_names() -> None:
    [worker] = [each for each in pods("everything") if each.component == "worker"]
    assert {"name": "CUDA_CACHE_PATH", "value": "/tmp/cuda"} in worker.spec["containers"][0]["env"]


def test_an_upgrade_leaves_the_evaluation_s_servers_alone(tmp_path: Path) -> None:
    next_chart = tmp_path / "wharfinger"
    shutil.copytree(CHART, next_chart)
    about = (next_chart / "Chart.yaml").read_text()
    (next_chart / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion):.*$", r'\1: "9.9.9"', about))
    values = VALUES["evaluation"]
    before = rendered(values)
    after = rendered(values | {"settings": {"LOG_LEVEL": "debug"}}, "--is-upgrade", chart=next_chart)
    templates = [[o["spec"]["template"] for o in several if o["kind"] == "StatefulSet"] for several in (before, after)]
    assert len(templates[0]) == 2
    assert templates[0] == templates[1]


def test_the_evaluation_s_servers_run_under_any_uid_and_group() -> None:
    postgres, rabbitmq = sorted(
        (each for each in pods("evaluation") if not each.is_ours), key=lambda each: each.component
    )
    given = postgres.environment(postgres.spec["containers"][0], [])
    mounts = {mount["mountPath"]: mount["name"] for mount in postgres.spec["containers"][0]["volumeMounts"]}
    # The volume's root belongs to somebody else, and may hold lost+found.
    assert mounts[str(Path(given["PGDATA"]).parent)] == "data"
    # Erlang's cookie must be its owner's alone, and an fsGroup opens what is on the claim.
    given = rabbitmq.environment(rabbitmq.spec["containers"][0], [])
    mounts = {mount["mountPath"]: mount["name"] for mount in rabbitmq.spec["containers"][0]["volumeMounts"]}
    assert mounts[given["HOME"]] == "tmp"


def test_the_evaluation_s_ids_can_be_left_away() -> None:
    for none in (None, {"runAsUser": None, "runAsGroup": None, "fsGroup": None}):
        ids = {"podSecurityContext": none}
        found = rendered({"evaluation": {"enabled": True, "postgres": ids, "rabbitmq": ids}})
        for each in pods_of(found):
            assert not {"runAsUser", "runAsGroup", "fsGroup"} & each.spec["securityContext"].keys()


def test_every_image_is_pulled_with_the_secrets_that_are_named() -> None:
    values = {"evaluation": {"enabled": True}, "image": {"pullSecrets": ["a", "b"], "pullPolicy": "Always"}}
    for each in pods_of(rendered(values)):
        assert each.spec["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
        assert {container["imagePullPolicy"] for container in each.containers} == {"Always"}


def test_keda_counts_with_a_login_of_its_own_and_shows_prometheus_one() -> None:
    scaling = {"enabled": True, "queueActivation": False}
    pools = [{"name": "a", "autoscaling": scaling}]
    found = rendered(QUEUED | {"database": {"existingSecret": "db", "kedaUrlKey": "keda-url"}, "pools": pools})
    [authentication] = [o for o in found if o["kind"] == "TriggerAuthentication"]
    assert authentication["spec"]["secretTargetRef"] == [{"parameter": "connection", "name": "db", "key": "keda-url"}]
    scaling |= {
        "source": "prometheus",
        "prometheusUrl": "https://thanos-querier.openshift-monitoring.svc:9092",
        "prometheusAuthentication": "thanos",
        "prometheusMetadata": {"authModes": "bearer"},
    }
    [scaled] = [o for o in rendered(QUEUED | {"pools": pools}) if o["kind"] == "ScaledObject"]
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": "thanos"}
    assert trigger["metadata"]["authModes"] == "bearer"


def test_a_release_s_name_may_have_dots() -> None:
    ended = run("35", "template", "wharf.v2", str(CHART), values=QUEUED)
    names = {o["metadata"]["name"] for o in yaml.safe_load_all(ended.stdout) if o}
    assert "wharf-v2-wharfinger" in names
    assert not any("." in name for name in names)


LOGINS = {
    "broker": {("db", "api-url")},
    "relay": {("db", "relay-url"), ("mq", "relay-url")},
    "worker": {("db", "worker-url"), ("mq", "worker-url")},
    "cleanup": {("db", "cleanup-url")},
    "verify": {("db", "cleanup-url")},
    "migrate": {("db", "owner-url")},
    "test": set(),
}


def test_each_process_is_given_its_own_logins_and_no_other() -> None:
    """docs/security.md counts on it: a pod that is taken over has no more than these."""
    seen = set()
    for each in pods("external"):
        given = {
            (reference["name"], reference["key"])
            for container in each.containers
            for variable in container["env"]
            if (reference := variable.get("valueFrom", {}).get("secretKeyRef"))
        }
        assert given - {("wharf-wharfinger-admin-key", "api-key")} == LOGINS[each.component]
        assert (("wharf-wharfinger-admin-key", "api-key") in given) == (each.component == "test")
        mounted = {volume["secret"]["secretName"] for volume in each.spec["volumes"] if "secret" in volume}
        assert mounted == ({"wharf-wharfinger-admin-key"} if each.component == "migrate" else set())
        seen.add(each.component)
    assert seen == LOGINS.keys()


def test_what_a_pool_says_itself_wins_be_it_nothing() -> None:
    defaults = {
        "autoscaling": {"enabled": True},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "gpus": 1,
        "nodeSelector": {"gpu": "yes"},
    }
    own = {"name": "a", "replicas": 0, "autoscaling": {"enabled": False}, "tolerations": [], "gpus": 0}
    found = rendered(QUEUED | {"poolDefaults": defaults, "pools": [own]})
    assert not any(o["kind"] == "ScaledObject" for o in found)
    [worker] = [each for each in pods_of(found) if each.component == "worker"]
    assert worker.owner["spec"]["replicas"] == 0
    assert "tolerations" not in worker.spec
    assert "nvidia.com/gpu" not in worker.spec["containers"][0]["resources"]["limits"]
    assert worker.spec["nodeSelector"] == {"gpu": "yes"}


@pytest.mark.parametrize("name", ["external", "evaluation"])
def test_whoever_may_edit_a_namespace_may_install_it(name: str) -> None:
    """Of Kubernetes' own roles `edit` has these: no kind of the whole cluster, no Role, nothing that operators add."""
    allowed = {
        "ConfigMap", "CronJob", "Deployment", "Job", "NetworkPolicy", "PersistentVolumeClaim", "Pod",
        "PodDisruptionBudget", "Secret", "Service", "ServiceAccount", "StatefulSet",
    }  # fmt: skip
    assert {found["kind"] for found in objects(name)} <= allowed


@pytest.mark.parametrize("queue", [{"existingSecret": "mq"}, {"enabled": False}])
def test_the_migration_makes_a_login_for_each_process_that_there_is(queue: dict[str, Any]) -> None:
    found = rendered(QUEUED | {"database": {"existingSecret": "db", "createLogins": True}, "queue": queue})
    [migrate] = [each for each in pods_of(found) if each.component == "migrate"]
    [logins] = [volume for volume in migrate.spec["volumes"] if volume["name"] == "logins"]
    roles = {item["path"]: item["key"] for item in logins["secret"]["items"]}
    processes = {"api", "worker", "cleanup"} | ({"relay"} if "existingSecret" in queue else set())
    assert roles == {f"wharf_{process}": f"{process}-url" for process in processes}


def test_keda_reaches_the_evaluation_s_servers_whatever_is_set_for_others() -> None:
    pools = [{"name": "a", "autoscaling": {"enabled": True}}]
    others = {"database": {"kedaUrlKey": "keda-url"}, "queue": {"caSecret": "mq-ca"}, "pools": pools}
    found = rendered(VALUES["evaluation"] | others)
    secrets = {o["metadata"]["name"]: o["stringData"] for o in found if o["kind"] == "Secret"}
    for authentication in (o for o in found if o["kind"] == "TriggerAuthentication"):
        [reference] = authentication["spec"]["secretTargetRef"]
        assert reference["key"] in secrets[reference["name"]]
        assert "configMapTargetRef" not in authentication["spec"]
