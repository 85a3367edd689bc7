"""The OpenAPI document as people read it, and the guide beside it."""

import json
import re

import pytest

from tests.conftest import ROOT

DOCUMENT = json.loads((ROOT / "schema" / "openapi.json").read_text())
OPERATIONS = [
    pytest.param(path, method, operation, id=f"{method.upper()} {path}")
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_operation_says_in_words_what_it_does(path, method, operation):
    function = operation["operationId"].removesuffix(re.sub(r"\W", "_", f"{path}_{method}"))
    assert operation["summary"] != function.replace("_", " ").title()
    assert 1 < len(operation["summary"].split()) <= 8
    assert operation["description"]
    assert operation["tags"]


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_the_guide_names_every_operation_with_what_it_can_be_asked(path, method, operation):
    guide = (ROOT / "docs" / "api.md").read_text()
    row = re.search(rf"^\| `{method.upper()} {re.escape(path)}` \|.*", guide, re.MULTILINE)
    assert row, "the table of all routes lacks it"
    asked = {each["name"] for each in operation["parameters"] if each.get("in") == "query"}
    assert asked == set(re.findall(r"`\?(\w+)`", row[0]))
