"""The application: parts, middleware, routes and error handlers, joined."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from service.api import health, openai, tasks
from service.api.documentation import correct_document
from service.api.errors import on_http_exception, on_validation_error
from service.api.middleware import AdmissionMiddleware, ExchangeMiddleware
from service.gateway import build_gateway
from service.settings import Settings


def build_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application. Raises BundleError or ValueError where the bundle is damaged."""
    gateway = build_gateway(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(
        title="Trident",
        version=version("trident"),
        description="Text generation, question answering and summaries by one hybrid Transformer-RNN model.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        middleware=[
            Middleware(ExchangeMiddleware, metrics=gateway.metrics, clock=gateway.clock, admission=gateway.admission),
            Middleware(AdmissionMiddleware, admission=gateway.admission, limits=settings.limits),
        ],
        exception_handlers={
            HTTPException: on_http_exception,
            RequestValidationError: on_validation_error,
        },
    )
    app.state.gateway = gateway
    for router in (tasks.router, openai.router, openai.models, health.router):
        app.include_router(router)
    correct_document(app, gateway)
    return app
