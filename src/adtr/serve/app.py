"""The application: routes, limits, life from start to stop."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from adtr import __version__
from adtr.report.pictures import HEAT
from adtr.serve.answers import decode
from adtr.serve.batching import QueueFullError
from adtr.serve.envelope import Envelope
from adtr.serve.feedback import Feedback
from adtr.serve.metrics import ServerMetrics
from adtr.serve.models import Models
from adtr.serve.schemas import (
    CalibrationValues,
    Health,
    Marked,
    ModelDetails,
    ModelList,
    ModelSummary,
    Problem,
    ThresholdValues,
    Verdicts,
)
from adtr.serve.service import Service, Settings
from adtr.serve.uploads import MAX_IMAGES, RefusedError

_BINARY = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "properties": {"images": {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": MAX_IMAGES}},
    "required": ["images"],
}
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp", "application/octet-stream")
_ONE_IMAGE = {kind: {"schema": _BINARY} for kind in _IMAGE_TYPES}
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def create_app(models: Models, settings: Settings) -> FastAPI:
    """The application of these models."""
    service = Service(models, settings)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="adtr",
        version=__version__,
        description="Visual anomaly detection: the verdict on images, and where they depart from good.",
        docs_url=None,  # FastAPI's page of documentation loads its scripts from elsewhere
        redoc_url=None,
        lifespan=life,
    )
    app.state.service = service
    app.add_middleware(Envelope, metrics=service.metrics, local=settings.local and settings.token is None)
    guard = [Depends(_token_check(settings.token, service.metrics))] if settings.token is not None else []
    guarded = APIRouter(dependencies=guard, responses=_problems(401) if guard else {})
    _add_models(guarded, service)
    _add_predict(guarded, service)
    if service.feedback is not None:
        _add_feedback(guarded, service, service.feedback)
    _add_health(app, guarded, service)
    app.include_router(guarded)
    _add_page(app, has_feedback=service.feedback is not None)
    _add_errors(app, service.metrics)
    return app


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem} for code in codes}


def _token_check(token: str, metrics: ServerMetrics) -> Callable[..., None]:
    expected = token.encode()

    def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode("utf-8", "replace"), expected):
            metrics.rejected.labels("token").inc()
            raise RefusedError(
                401, "a valid token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    return check


def _add_models(router: APIRouter, service: Service) -> None:
    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """All models with their thresholds."""
        return ModelList(models=[ModelSummary.of(model) for model in service.models])

    @router.get("/v1/models/{name}", responses=_problems(404))
    async def show_model(name: str) -> ModelDetails:
        """One model, with the scores of good images from which thresholds at any rate follow."""
        model = service.model(name)
        calibration = model.detector.calibration_
        values = CalibrationValues(image_scores=calibration.image_scores, pixel_maxima=calibration.pixel_maxima)
        return ModelDetails(**ModelSummary.of(model).model_dump(), calibration=values)


def _add_predict(router: APIRouter, service: Service) -> None:
    content = {"multipart/form-data": {"schema": _FORM}, **_ONE_IMAGE}

    @router.post(
        "/v1/models/{name}/predict",
        responses=_problems(400, 404, 408, 413, 415, 422, 503),
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )
    async def predict(
        name: str,
        request: Request,
        map_format: Annotated[
            Literal["png", "float", "grid"] | None,
            Query(
                alias="map",
                description="The anomaly map too: at the image's size as PNG or floats, or the network's own grid, "
                "of which the others are bilinear enlargements.",
            ),
        ] = None,
    ) -> Verdicts:
        """The verdicts on one or several images: files of a form, or one image as the body."""
        model = service.model(name)
        service.batcher.check()
        async with service.uploads.receive(request) as uploads:
            request.state.told.update(model=name, version=model.version, images=len(uploads))
            if len(uploads) > service.batcher.capacity:
                raise RefusedError(413, f"at most {service.batcher.capacity} images in a request")
            predictions = await service.judge(model, uploads, map_format)
        request.state.told["verdicts"] = [prediction.verdict for prediction in predictions]
        return Verdicts(
            model=name,
            version=model.version,
            request_id=request.state.request_id,
            thresholds=ThresholdValues.of(model.detector.thresholds_),
            predictions=predictions,
        )


def _add_feedback(router: APIRouter, service: Service, feedback: Feedback) -> None:
    @router.post(
        "/v1/models/{name}/feedback",
        responses=_problems(400, 404, 408, 413, 415, 422, 503, 507),
        openapi_extra={"requestBody": {"required": True, "content": _ONE_IMAGE}},
    )
    async def mark(
        name: str,
        request: Request,
        label: Annotated[Literal["good", "anomalous"], Query(description="What the image truly is.")],
        defect: Annotated[
            str, Query(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$", description="The name of its defect.")
        ] = "anomaly",
    ) -> Marked:
        """Keep an image with its true label, for `adtr improve`."""
        model = service.model(name)
        async with service.uploads.receive(request) as uploads:
            if len(uploads) != 1:
                raise RefusedError(400, "send one image")
            await service.in_thread(decode, uploads[0], model.detector, service.settings.max_pixels)
            kept = await service.in_thread(feedback.keep, name, uploads[0].data, None if label == "good" else defect)
        request.state.told.update(model=name, label=label, kept=kept)
        return Marked(kept=kept)


def _add_health(app: FastAPI, guarded: APIRouter, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="ok")

    @app.get("/readyz", responses={503: {"model": Health}})
    async def readyz() -> Any:  # noqa: ANN401 - FastAPI's own
        """Images can be judged."""
        ready = service.batcher.is_alive
        return JSONResponse({"status": "ok" if ready else "stopping"}, 200 if ready else 503)

    @guarded.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI, *, has_feedback: bool) -> None:
    folder = files("adtr.serve") / "page"
    heat = json.dumps(HEAT.tolist(), separators=(",", ":"))
    for path, (name, kind) in _PAGE.items():
        text = (folder / name).read_text("utf-8")
        text = text.replace("{{heat}}", heat).replace("{{feedback}}", json.dumps(has_feedback))

        app.router.add_route(path, partial(_show, text=text, kind=kind), methods=["GET"], include_in_schema=False)


async def _show(_request: Request, *, text: str, kind: str) -> Response:
    return Response(text, media_type=kind, headers={"Cache-Control": "no-cache"})


def _add_errors(app: FastAPI, metrics: ServerMetrics) -> None:
    def answer(request: Request, status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        request.state.told["error"] = message
        return JSONResponse({"error": message, "request_id": request.state.request_id}, status, headers)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        if error.status == 503:
            metrics.rejected.labels("memory").inc()
        elif error.status != 401:
            metrics.rejected.labels("upload").inc()
        return answer(request, error.status, error.message, error.headers)

    @app.exception_handler(QueueFullError)
    async def full(request: Request, error: QueueFullError) -> JSONResponse:
        metrics.rejected.labels("queue").inc()
        return answer(request, 503, str(error), {"Retry-After": str(error.retry_after)})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return answer(request, 422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request, error.status_code, str(error.detail), dict(error.headers or {}))
