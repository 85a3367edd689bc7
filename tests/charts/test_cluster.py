"""`cluster` in the values: a token for brokers alone, and no right that a command does not use."""

import json
from typing import Any

from standalone.doctor.cluster import RIGHTS
from tests.charts.rendering import CHART, QUEUED, pods_of, rendered, run, selects

OPERATOR = {"kind": "User", "name": "ada", "apiGroup": "rbac.authorization.k8s.io"}


def rights(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_brokers_alone_have_a_token_and_may_list_what_they_show() -> None:
    found = rendered(QUEUED | {"cluster": {"enabled": True}})
    with_token = {pods.component for pods in pods_of(found) if pods.spec["automountServiceAccountToken"]}
    assert with_token == {"broker"}
    [role] = [each for each in found if each["kind"] == "Role"]
    assert rights(role) == {("list", "", "pods"), ("list", "apps", "deployments")}
    [binding] = [each for each in found if each["kind"] == "RoleBinding"]
    [subject] = binding["subjects"]
    [broker] = [pods for pods in pods_of(found) if pods.component == "broker"]
    assert subject["name"] == broker.spec["serviceAccountName"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    [out] = [each for each in found if each["metadata"]["name"].endswith("-to-kubernetes")]
    reaching = {pods.component for pods in pods_of(found) if selects(out["spec"]["podSelector"], pods.labels)}
    assert reaching == {"broker"}
    values = QUEUED | {"cluster": {"enabled": True}, "networkPolicy": {"kubernetesPorts": [443, 16443]}}
    [out] = [each for each in rendered(values) if each["metadata"]["name"].endswith("-to-kubernetes")]
    assert [port["port"] for port in out["spec"]["egress"][0]["ports"]] == [443, 16443]


def test_operators_get_what_the_commands_ask_for_and_nothing_else() -> None:
    found = rendered(QUEUED | {"cluster": {"operators": [OPERATOR]}})
    assert not any(pods.spec["automountServiceAccountToken"] for pods in pods_of(found))
    [role] = [each for each in found if each["kind"] == "Role"]
    assert rights(role) == {
        (verb, group, "/".join(filter(None, (resource, subresource)))) for verb, resource, group, subresource in RIGHTS
    }
    [binding] = [each for each in found if each["kind"] == "RoleBinding"]
    assert binding["subjects"] == [OPERATOR]


def test_a_subject_without_a_kind_is_refused_by_the_schema() -> None:
    for release in ("35", "32"):
        ended = run(release, "lint", str(CHART), values=QUEUED | {"cluster": {"operators": [{"name": "ada"}]}})
        assert ended.returncode != 0, json.dumps(ended.stdout)
        assert "kind" in ended.stdout + ended.stderr
