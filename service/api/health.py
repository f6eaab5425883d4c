"""How the service stands: alive, ready, and in numbers."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel
from starlette.responses import Response

from service.api.calls import GatewayOf
from service.api.errors import ErrorResponse
from service.errors import Unavailable

router = APIRouter(tags=["Operation"])

NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorResponse, "description": "`unavailable`, and why: starting, draining, or what failed"}
}


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class ServerModel(BaseModel):
    """Who runs the models."""

    name: str
    version: str


class Ready(BaseModel):
    """A canary request of every task came back."""

    status: Literal["ready"] = "ready"
    model: str
    runtime: Literal["triton", "local"]
    server: ServerModel


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live")
async def live() -> Live:
    """Whether the process answers, ready or not."""
    return Live()


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", responses=NOT_READY)
async def ready(gateway: GatewayOf) -> Ready:
    """Whether requests will be answered."""
    fleet = gateway.served.fleet
    if gateway.admission.draining:
        raise Unavailable("draining: the service is shutting down and takes no new requests")
    found = fleet.server
    if found is None:
        raise Unavailable(f"not ready: {fleet.reason}")
    server = ServerModel(name=found.name, version=found.version)
    return Ready(model=gateway.served.manifest.name, runtime=gateway.settings.runtime, server=server)


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, gateway: GatewayOf) -> Response:
    """Everything that is counted, for Prometheus."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(gateway.metrics.registry), headers={"Content-Type": content_type})
