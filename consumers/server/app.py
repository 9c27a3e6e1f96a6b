"""The service's routes: /classify for pictures, the Open Inference Protocol v2 for tensors, /metrics, /docs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from consumers import predict
from consumers.server import protocol
from consumers.server.guard import Guard, refuse
from consumers.server.limits import RefusedError
from consumers.server.service import Service, decode, picture_in

NAME = "classifier"
MODEL = f"/v2/models/{NAME}"


def create_app(service: Service, token: str | None = None) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(service.run())
        yield
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    app = FastAPI(title="Image classifier", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, metrics=service.metrics, token=token, seconds=service.limits.seconds)
    app.add_exception_handler(
        RequestValidationError, lambda *_: refuse(422, "a parameter has no such value; see /docs")
    )
    app.add_exception_handler(
        HTTPException, lambda _, error: refuse(error.status_code, explain(error), headers=error.headers)
    )
    add_classify(app, service)
    add_protocol(app, service)

    @app.get("/metrics", response_class=Response, summary="Counters for Prometheus")
    def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(describe(app.openapi()), headers={"Content-Security-Policy": "default-src 'none'"})

    return app


def add_classify(app: FastAPI, service: Service) -> None:
    picture = {"schema": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}}
    accepts = {"requestBody": {"required": True, "content": {"image/*": picture, "multipart/form-data": form}}}

    @app.post("/classify", openapi_extra=accepts, summary="What is in a picture: its file as the body, or in a form")
    async def classify(request: Request, always: bool = False) -> dict[str, Any]:
        model = service.file.current.model
        with service.admission.admit():
            encoding = request.headers.get("content-encoding", "").lower()
            async with service.admission.body(request.stream(), encoding) as body:
                picture = await picture_in(request, body)
                image = await service.in_thread(decode, picture, model.side)
                (result,) = await service.classify(model, [image])
        if isinstance(result, predict.ImageError):
            raise RefusedError(422, str(result))
        known = predict.record(model, result, always)
        request.state.noted = {"images": 1, "bytes": len(picture), "decision": known["decision"]}
        return known


def add_protocol(app: FastAPI, service: Service) -> None:
    """The Open Inference Protocol, version 2."""
    server = {"name": NAME, "version": "1", "extensions": ["binary_tensor_data", "classification"]}

    @app.get("/v2", summary="What this server is")
    def describe_server() -> dict[str, Any]:
        return server

    @app.get("/v2/health/live", summary="Whether the process is alive")
    @app.head("/v2/health/live", include_in_schema=False)
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether it answers requests")
    @app.head("/v2/health/ready", include_in_schema=False)
    @app.get(f"{MODEL}/ready", summary="Whether the model answers requests")
    @app.get(f"{MODEL}/versions/1/ready", include_in_schema=False)
    async def ready() -> Response:
        return JSONResponse({"ready": True}) if service.ready else refuse(503, "not ready")

    @app.get(MODEL, summary="The model's inputs and outputs")
    @app.get(f"{MODEL}/versions/1", include_in_schema=False)
    async def metadata() -> dict[str, Any]:
        model = service.file.current.model
        return protocol.describe_model(NAME, len(model.class_names), "familiarity" in model.outputs)

    @app.post(f"{MODEL}/infer", summary="Probabilities of decoded pictures, as JSON or binary tensors")
    @app.post(f"{MODEL}/versions/1/infer", include_in_schema=False)
    async def infer(request: Request) -> Response:
        headers, model = request.headers, service.file.current.model
        with service.admission.admit():
            encoding = headers.get("content-encoding", "").lower()
            async with service.admission.body(request.stream(), encoding) as body:
                asked, images = await service.read(model, body, headers.get("inference-header-content-length"))
                request.state.noted = {"images": len(images), "bytes": len(body)}
                results = await service.classify(model, images)
        return render(asked, model.class_names, results)


def explain(error: HTTPException) -> str:
    """What is wrong with a request that no route takes."""
    return (
        f"no such path or model: the model is {NAME}, version 1; see /docs"
        if error.status_code == 404
        else error.detail
    )


def render(asked: protocol.Request, class_names: list[str], results: list[predict.Result]) -> Response:
    failed = next((str(result) for result in results if isinstance(result, predict.ImageError)), None)
    if failed is not None:
        raise RefusedError(422, failed)
    found = [result for result in results if isinstance(result, predict.Answer)]
    tensors = {"probabilities": np.stack([answer.probabilities for answer in found])}
    if found[0].familiarity is not None:
        tensors["familiarity"] = np.array([answer.familiarity for answer in found], np.float32)
    body, header_length = protocol.render(asked, tensors, class_names, NAME)
    if header_length is None:
        return Response(body, media_type="application/json")
    headers = {"Inference-Header-Content-Length": str(header_length)}
    return Response(body, headers=headers, media_type="application/octet-stream")


def describe(schema: dict[str, Any]) -> str:
    """A page of the routes that needs nothing from elsewhere; /openapi.json has the details."""
    rows = "".join(
        f"<tr><td>{method.upper()}<td><code>{path}</code><td>{operation['summary']}"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    return (
        f"<!doctype html><html lang=en><title>{schema['info']['title']}</title><h1>{schema['info']['title']}</h1>"
        f"<p>Try <code>curl --data-binary @photo.jpg localhost:8000/classify</code>; the whole description is at "
        f'<a href="/openapi.json">/openapi.json</a>.<table>{rows}</table></html>'
    )
