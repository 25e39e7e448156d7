"""The HTTP application: routes, limits, validation, errors. It knows nothing of Ray."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cellmill.errors import CellmillError, RequestError
from cellmill.models.manifest import Task
from cellmill.serving.answers import answer_type
from cellmill.serving.bodies.kinds import ARROW, CONTENT_TYPES, JSON, kind_of
from cellmill.serving.bodies.parser import BodyParser
from cellmill.serving.body_limit import BodyLimit
from cellmill.serving.config import MB, LimitsConfig
from cellmill.serving.endpoint import Endpoint
from cellmill.serving.errors import NotServedError
from cellmill.serving.schemas import (
    AnnotateAnswer,
    CellsBody,
    EmbedAnswer,
    ErrorAnswer,
    Health,
    ModelCard,
    ModelList,
)

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2
_REF = "#/components/schemas/{model}"
_BINARY = {"type": "string", "format": "binary"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 404, 408, 413, 415, 422, 429, 500, 503)
}


class _Documented(FastAPI):
    """Adds the schemas of bodies to the documentation: they are read by hand, so they are not found by themselves."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document = super().openapi()
        bodies: tuple[type[BaseModel], ...] = (CellsBody, EmbedAnswer, AnnotateAnswer)
        _, schemas = models_json_schema([(model, "validation") for model in bodies], ref_template=_REF)
        document["components"]["schemas"] |= schemas["$defs"]
        return document


def create_app(endpoints: Mapping[str, Endpoint], limits: LimitsConfig, parser: BodyParser) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    endpoints
        Models by name.
    limits
        What one request may bring.
    parser
        Reads bodies.
    """
    app = _Documented(title="Cellmill", docs_url=None, redoc_url=None, responses=_ERRORS)
    app.add_middleware(BodyLimit, limit_of=partial(_limit_of, limits))
    app.add_exception_handler(CellmillError, _on_ours)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_defect)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Say that requests are taken."""
        return Health(status="ok", models=list(endpoints))

    @app.get("/v1/models")
    async def models() -> ModelList:
        """List the models."""
        return ModelList(models=[_without_lineage(endpoint.card) for endpoint in endpoints.values()])

    @app.get("/v1/models/{name}")
    async def model(name: str) -> ModelCard:
        """Describe one model, with its lineage down to the source files."""
        return _find(endpoints, name).card

    def route(task: Task, answer_model: type[EmbedAnswer] | type[AnnotateAnswer], summary: str) -> None:
        @app.post(
            f"/v1/models/{{name}}/{task}",
            name=task,
            summary=summary,
            response_model=None,
            openapi_extra=_body_schema(),
            responses={
                200: {
                    "content": {
                        JSON: {"schema": {"$ref": _REF.format(model=answer_model.__name__)}},
                        ARROW: {"schema": _BINARY},
                    }
                }
            },
        )
        async def predict(name: str, request: Request) -> Response:
            endpoint = _find(endpoints, name)
            if task not in endpoint.card.tasks:
                raise NotServedError(
                    f"The model {name!r} does not {task}.",
                    where=str(request.url.path),
                    fix=f"It does: {', '.join(endpoint.card.tasks)}.",
                )
            kind = kind_of(request.headers.get("content-type", ""))
            wanted = answer_type(request.headers.get("accept", ""))
            body = bytearray()
            async for piece in request.stream():
                body += piece
            cells = await parser.read(kind, body)
            del body
            answer = await endpoint.answer(task, cells)
            content = answer.to_arrow() if wanted == ARROW else answer.to_json()
            return Response(content, media_type=wanted)

    route("embed", EmbedAnswer, "One vector for each cell.")
    route("annotate", AnnotateAnswer, "One label with its probability for each cell.")

    @app.post("/v1/models/{name}/{task}", include_in_schema=False)
    async def other(name: str, task: str) -> Response:
        _find(endpoints, name)
        raise NotServedError(
            f"There is no task {task!r}.", where=f"/v1/models/{name}/{task}", fix=f"Tasks: {', '.join(get_args(Task))}."
        )

    return app


def error_response(error: CellmillError) -> JSONResponse:
    """Return an error as the server sends it."""
    headers = {}
    if error.http_status in (429, 503):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if error.http_status == 413:
        headers["Connection"] = "close"  # what is left of the body is not read
    return JSONResponse({"error": error.as_dict()}, status_code=error.http_status, headers=headers)


def _limit_of(limits: LimitsConfig, content_type: str) -> int:
    is_json = CONTENT_TYPES.get(content_type.partition(";")[0].strip().lower()) == "json"
    return (limits.max_json_mb if is_json else limits.max_body_mb) * MB


def _find(endpoints: Mapping[str, Endpoint], name: str) -> Endpoint:
    if name not in endpoints:
        raise NotServedError(
            f"No model is called {name[:80]!r}.", where="/v1/models", fix=f"There are: {', '.join(endpoints)}."
        )
    return endpoints[name]


def _without_lineage(card: ModelCard) -> ModelCard:
    return card.model_copy(update={"lineage": None})


def _body_schema() -> dict[str, Any]:
    content = {
        kind: {"schema": {"$ref": _REF.format(model="CellsBody")} if kind == JSON else _BINARY}
        for kind in CONTENT_TYPES
    }
    return {"requestBody": {"required": True, "content": content}}


async def _on_ours(request: Request, error: Exception) -> Response:
    if not isinstance(error, CellmillError):
        return await _on_defect(request, error)
    if error.http_status >= 500:
        logger.error("%s %s: %s", request.method, request.url.path, error)
    return error_response(error)


async def _on_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = {404: "There is nothing here.", 405: "This address does not take that method."}.get(status, "Refused.")
    detail = {"kind": "request", "what": what, "where": str(request.url.path), "fix": "See /openapi.json."}
    return JSONResponse({"error": detail}, status_code=status)


async def _on_validation(request: Request, error: Exception) -> Response:
    detail = RequestError("The request is not valid.", where=str(request.url.path), fix="See /openapi.json.").as_dict()
    return JSONResponse({"error": detail}, status_code=422)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


async def _on_defect(request: Request, error: Exception) -> Response:
    logger.exception("%s %s", request.method, request.url.path, exc_info=error)
    detail = {
        "kind": "internal",
        "what": "The server failed on this request.",
        "where": str(request.url.path),
        "fix": "The server's log says why; please report it.",
    }
    return JSONResponse({"error": detail}, status_code=500)
