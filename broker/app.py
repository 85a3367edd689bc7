"""The ASGI application: middleware, errors and routes put together around one service."""

from pathlib import Path

import swagger_ui_bundle
from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles

from broker import problems
from broker.routes import files, health, jobs, keys, models, pools, tenant
from broker.service import Service
from broker.tracing import RequestTracing
from custody.wire import FilePatch, JobSubmission, KeyRequest, Problem, TenantPatch

SWAGGER_UI = Path(swagger_ui_bundle.swagger_ui_path)


def build_app(service: Service) -> FastAPI:
    app = FastAPI(
        title="Wharfinger",
        version="1",
        description="Takes custody of images once and brings the model to them.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"4XX": {"model": Problem, "content": {"application/problem+json": {}}}},
    )
    app.state.service = service
    for noun in (files, jobs, models, pools, keys, tenant, health):
        app.include_router(noun.router)
    problems.install(app)
    app.mount("/docs/assets", StaticFiles(directory=SWAGGER_UI))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Wharfinger API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon-32x32.png",
        )

    app.add_middleware(RequestTracing, metrics=service.metrics)
    _describe_bodies(app)
    return app


def _describe_bodies(app: FastAPI) -> None:
    """Adds the bodies that the routes read themselves, after the key was checked, to the OpenAPI document."""
    document = app.openapi()  # what it answers from now on: changed in place
    for body in (FilePatch, JobSubmission, KeyRequest, TenantPatch):
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"].update(schema.pop("$defs", {}))
        document["components"]["schemas"][body.__name__] = schema
    document["components"]["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"api_key": []}]
