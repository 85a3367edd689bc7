"""`python -m contracts.manifests`: what deploy/ holds of the chart, rendered anew, or compared with what is committed.

deploy/kustomize/base             the chart's objects, for Secrets that exist already; a file for each component
deploy/kustomize/components       what the chart adds to them where something more is enabled, and a Job for a model
deploy/openshift/template.yaml    the chart's objects as OpenShift's Template
deploy/openshift/model.yaml       a Job that registers a model, as the chart's workers do it before they start
deploy/openshift/evaluation.yaml  the chart's PostgreSQL and RabbitMQ for a first try
"""

import difflib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from contracts.helm import ToolMissingError
from contracts.kustomize import kustomize
from contracts.openshift import evaluation_template, model_template, template
from contracts.rendering import DEPLOY, GENERATED, ROOT, dump


def manifests(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where something differs")] = False,
) -> None:
    """Renders what deploy/ holds of the chart, or checks that it is up to date."""
    try:
        wanted = rendered()
    except ToolMissingError as error:
        if not check or "CI" in os.environ:
            sys.exit(str(error))
        typer.echo(f"deploy/ was not compared with the chart: {error}", err=True)
        return
    folders = (DEPLOY / "kustomize" / "base", DEPLOY / "kustomize" / "components")
    superfluous = [path for folder in folders for path in folder.rglob("*.yaml") if path not in wanted]
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if check:
            old = path.read_text().splitlines() if path.exists() else []
            lines = difflib.unified_diff(old, wanted[path].splitlines(), str(path), "rendered", lineterm="")
            typer.echo("\n".join(list(lines)[:40]))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
            typer.echo(f"wrote {path.relative_to(ROOT)}")
    for path in superfluous:
        typer.echo(f"{path.relative_to(ROOT)}: no longer rendered")
        if not check:
            path.unlink()
    if check and (stale or superfluous):
        sys.exit("deploy/ differs from the chart: run `make manifests` and commit what it wrote.")


def rendered() -> dict[Path, str]:
    """Path -> text of every file that is made from the chart. Raises `ToolMissingError` without helm."""
    openshift = DEPLOY / "openshift"
    return kustomize(DEPLOY / "kustomize") | {
        openshift / "template.yaml": GENERATED + dump(template()),
        openshift / "model.yaml": GENERATED + dump(model_template()),
        openshift / "evaluation.yaml": GENERATED + dump(evaluation_template()),
    }


if __name__ == "__main__":
    typer.run(manifests)
