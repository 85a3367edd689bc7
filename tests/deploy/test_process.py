"""The tests' own `oc process`."""

import re
from typing import Any

import pytest

from tests.support.openshift import ProcessError, generate, process


def template(*objects: Any) -> dict[str, Any]:
    return {
        "parameters": [
            {"name": "A", "value": "a"},
            {"name": "B", "value": "3"},
            {"name": "C", "generate": "expression", "from": "c-[a-f0-9]{20}"},
            {"name": "D", "required": True},
        ],
        "objects": list(objects),
    }


def test_text_takes_a_parameter_anywhere_and_stays_text() -> None:
    [made] = process(template({"${A}-key": "${A}/${B}:${D}", "port": "${B}"}), {"D": "d"})
    assert made == {"a-key": "a/3:d", "port": "3"}


def test_double_braces_give_the_value_itself() -> None:
    [made] = process(template({"n": "${{B}}", "list": ["${{D}}"], "word": "${{A}}"}), {"D": "true"})
    assert made == {"n": 3, "list": [True], "word": "a"}


def test_a_field_whose_value_is_null_is_left_out() -> None:
    [made] = process(template({"d": "${{D}}", "b": "${B}"}), {"D": "null"})
    assert made == {"b": "3"}


def test_a_generated_value_has_the_form_of_its_expression_and_yields_to_a_given_one() -> None:
    [made] = process(template({"c": "${C}"}), {"D": "d"})
    assert re.fullmatch(r"c-[a-f0-9]{20}", made["c"])
    [made] = process(template({"c": "${C}"}), {"D": "d", "C": "mine"})
    assert made == {"c": "mine"}


def test_an_expression_draws_from_all_its_ranges() -> None:
    drawn = generate("[a-cX0-1]{200}")
    assert set(drawn) == set("abcX01")
    assert re.fullmatch(r"\d{9}-\w{9}", generate(r"[\d]{9}-[\w]{9}"))


@pytest.mark.parametrize(
    ("given", "object_", "said"),
    [
        ({}, {}, "parameter D is required"),
        ({"D": ""}, {}, "parameter D is required"),
        ({"D": "d", "E": "e"}, {}, "unknown parameter name E"),
        ({"D": "d"}, {"x": "${E}"}, "names E, which is no parameter"),
        ({"D": "d"}, {"x": "${{E}}"}, "names E, which is no parameter"),
    ],
)
def test_what_is_missing_or_unknown_is_refused(given: dict[str, str], object_: dict[str, str], said: str) -> None:
    with pytest.raises(ProcessError, match=said):
        process(template(object_), given)
