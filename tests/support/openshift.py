"""`oc process`, as far as our Template needs it, and stricter: a reference to no parameter is an error."""

import json
import re
import secrets
import string
from collections.abc import Mapping
from typing import Any

TEXT = re.compile(r"\$\{([a-zA-Z0-9_]+)\}")
WHOLE = re.compile(r"\$\{\{([a-zA-Z0-9_]+)\}\}")
GENERATOR = re.compile(r"\[((?:\\[wdaA]|[a-zA-Z0-9]-[a-zA-Z0-9]|[a-zA-Z0-9])+)\]\{([0-9]+)\}")
CLASSES = {
    r"\w": string.ascii_letters + string.digits + "_",
    r"\d": string.digits,
    r"\a": string.ascii_letters + string.digits,
    r"\A": "~!@#$%^&*()-_+={}[]\\|<,>.?/\"';:`",
}


class ProcessError(Exception):
    """What `oc process` refuses."""


def process(template: Mapping[str, Any], given: Mapping[str, str]) -> list[dict[str, Any]]:
    """The Template's objects with `given` parameters; a field that becomes null is left out. Raises `ProcessError`: for
    an unknown parameter, a required one without a value, and a reference to one that is not declared."""
    declared = {parameter["name"]: parameter for parameter in template["parameters"]}
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise ProcessError(f"unknown parameter name {unknown[0]}")
    values: dict[str, str] = {}
    for name, parameter in declared.items():
        value = given.get(name, parameter.get("value", ""))
        if not value and name not in given and "generate" in parameter:
            if parameter["generate"] != "expression":
                raise ProcessError(f"parameter {name}: no generator is called {parameter['generate']}")
            value = generate(parameter["from"])
        if not value and parameter.get("required"):
            raise ProcessError(f"parameter {name} is required and must be specified")
        values[name] = value
    return [_substituted(one, values) for one in template["objects"]]


def generate(expression: str) -> str:
    """A random text of the expression's form: ranges in brackets with a count in braces, and all else as it stands."""
    return GENERATOR.sub(_drawn, expression)


def references(node: Any) -> set[str]:
    """The parameters that are named anywhere in this."""
    if isinstance(node, dict):
        return set().union(*(references(key) | references(value) for key, value in node.items()))
    if isinstance(node, list):
        return set().union(*map(references, node))
    return {*TEXT.findall(node), *WHOLE.findall(node)} if isinstance(node, str) else set()


def _drawn(found: re.Match[str]) -> str:
    ranges, count = found.groups()
    letters = ""
    for part in re.findall(r"\\[wdaA]|[a-zA-Z0-9]-[a-zA-Z0-9]|[a-zA-Z0-9]", ranges):
        if part in CLASSES:
            letters += CLASSES[part]
        else:
            letters += "".join(chr(code) for code in range(ord(part[0]), ord(part[-1]) + 1))
    return "".join(secrets.choice(letters) for _ in range(int(count)))


def _substituted(node: Any, values: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        found = {_substituted(key, values): _substituted(value, values) for key, value in node.items()}
        return {key: value for key, value in found.items() if value is not None}
    if isinstance(node, list):
        return [_substituted(one, values) for one in node]
    if not isinstance(node, str):
        return node
    missing = sorted(references(node) - set(values))
    if missing:
        raise ProcessError(f"{node!r} names {missing[0]}, which is no parameter")
    whole = WHOLE.fullmatch(node)
    if whole is None:
        return TEXT.sub(lambda found: values[found[1]], node)
    try:
        return json.loads(values[whole[1]])
    except json.JSONDecodeError:
        return values[whole[1]]
