"""The ASGI application: middleware, errors and routes put together around one service."""

from pathlib import Path

import swagger_ui_bundle
from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from broker import headers, problems
from broker.routes import audit, cluster, files, health, jobs, keys, models, pools, reruns, tenant
from broker.service import Service
from broker.tracing import RequestTracing
from custody.spans import Tracing
from custody.wire import FilePatch, JobSubmission, KeyRequest, Problem, RetryRequest, TenantPatch

SWAGGER_UI = Path(swagger_ui_bundle.swagger_ui_path)


def build_app(service: Service, tracing: Tracing | None = None) -> FastAPI:
    app = FastAPI(
        title="Wharfinger",
        version="1",
        description="Takes custody of images once and brings the model to them.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Its own spans would tell the address, and with it names of files.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    for noun in (files, jobs, reruns, models, pools, cluster, keys, tenant, audit, health):
        app.include_router(noun.router)
    problems.install(app)
    app.mount("/docs/assets", _WholeFiles(directory=SWAGGER_UI))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Wharfinger API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon-32x32.png",
        )

    app.add_middleware(RequestTracing, metrics=service.metrics, tracing=tracing)
    _describe(app)
    return app


class _WholeFiles(StaticFiles):
    """Ignores `Range`, as a server may (RFC 9110, 14.2): what cannot be read of it would be refused in plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def _describe(app: FastAPI) -> None:
    """Adds what routes read and answer by themselves to the OpenAPI document: the bodies that are read after the key
    was checked, the headers, and the problems, which take the place of the framework's own."""
    document = app.openapi()  # what it answers from now on: changed in place
    for body in (FilePatch, JobSubmission, KeyRequest, Problem, RetryRequest, TenantPatch):
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"].update(schema.pop("$defs", {}))
        document["components"]["schemas"][body.__name__] = schema
    for framework in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(framework, None)
    for operations in document["paths"].values():
        for method, operation in operations.items():
            operation.setdefault("parameters", []).extend(headers.read(*headers.EVERYWHERE)["parameters"])
            refusal = operation["responses"].get("422", {})
            if "application/problem+json" not in refusal.get("content", {}):
                operation["responses"].pop("422", None)  # any text is a name or an id: at worst there is no such thing
            for answered in operation["responses"].values():
                answered.setdefault("headers", {}).update(headers.sent(*headers.SENT_EVERYWHERE)["headers"])
                if method == "head":
                    answered.pop("content", None)
    document["components"].update(headers.components())
    document["components"]["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"api_key": []}]
