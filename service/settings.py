"""Every knob of the gateway, from the environment: `TRIDENT_` + part + `__` + name, e.g. TRIDENT_BATCHING__POLICY.

This is the only module that looks at the environment. Values are checked here; the rest of the code trusts them.
`read_settings` is the way in: it also refuses names of the environment that no setting has (setting_names.py).
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from service.setting_names import check_names
from service.setting_values import HostAndPort, Network, not_json, told

PRETRAINED = Path(__file__).resolve().parents[1] / "model" / "pretrained"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServerSettings(_Part):
    """The listening socket and the end of the process."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    grace_s: float = Field(default=25.0, ge=0)
    """From SIGTERM to the end of the process, the last answers included, which get up to 3 s of it: before Kubernetes
    kills, which is after 30 s. Never less than a second."""

    keep_alive_s: int = Field(default=620, ge=1)
    """How long a connection may be idle between requests. Longer than load balancers keep theirs (AWS and nginx 60 s,
    Azure 240 s, Google Cloud 600 s), so that they are the ones who close: one that sends into a connection that is
    being closed here answers its client with 502."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"


class LimitSettings(_Part):
    """What one request, and all of them together, may ask for."""

    head_bytes: int = Field(default=32_768, ge=1024)
    """URL and headers of a request; more is refused with 431."""

    headers: int = Field(default=100, ge=1)
    """Header lines of a request, trailers included; more are refused with 431."""

    head_timeout_s: float = Field(default=10.0, gt=0)
    """For a request's URL and headers to arrive, from the connection's first moment or the head's first byte. A head
    that is late is answered 408, a connection that never sent one is closed."""

    pipeline_bytes: int = Field(default=65_536, ge=1024)
    """Of requests that a client sends behind one that is still being answered; more is left in the socket meanwhile."""

    write_pause_s: float = Field(default=30.0, gt=0)
    """How long an answer that the network does not take may wait for its client to read; then the connection is cut
    and the request cancelled."""

    connections: int = Field(default=4096, ge=1)
    """Open ones in all; more are answered 503 and closed. Each takes a file descriptor."""

    connections_per_peer: int = Field(default=512, ge=1)
    """Open ones from one IPv4 address, or one /64 network of IPv6; more are answered 429 and closed."""

    requests_per_peer: int | None = Field(default=None, ge=1)
    """Of concurrent_requests, the most that one peer may have in flight; more are refused with 429. Without it one may
    take every place: behind a proxy, a load balancer or a network that translates addresses, which the gateway cannot
    tell from clients, all requests come from the same few addresses, and any number would be too small for them."""

    trusted_peers: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
    """Addresses of proxies, which speak for many clients: limits of a peer do not hold for them, and whom they name in
    X-Forwarded-For is the peer of a request. In the environment a JSON list: ["10.0.0.0/8"]."""

    body_bytes: int = Field(default=1 << 20, ge=1)
    """One body; more is refused with 413."""

    body_timeout_s: float = Field(default=60.0, gt=0)
    """For a whole body to arrive; one that is late is answered 408."""

    body_pause_s: float = Field(default=10.0, gt=0)
    """How long an upload may bring nothing before it is answered 408."""

    body_bytes_in_flight: int = Field(default=64 << 20, ge=1)
    """All bodies that are being read or served; what does not fit is refused with 429."""

    text_bytes_in_flight: int = Field(default=8 << 20, ge=1)
    """Long texts (questions' contexts) that are being tokenised or searched at once; others wait for their turn, until
    their deadlines. A byte takes up to 24 bytes of memory meanwhile."""

    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of a request that names none in X-Request-Timeout-Ms."""

    max_timeout_s: float = Field(default=600.0, gt=0)
    concurrent_requests: int = Field(default=256, ge=1)
    """Requests whose bodies are there and whose answers are not yet, waiting ones included; more are refused with
    429."""

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        for name in ("body_bytes_in_flight", "text_bytes_in_flight"):
            if (limit := getattr(self, name)) < self.body_bytes:
                raise ValueError(
                    f"limits.{name} is {limit}, less than one body may have ({self.body_bytes}): "
                    f"set it to at least that, or lower limits.body_bytes"
                )
        return self


class TierSettings(_Part):
    """What one class of service gets."""

    deadline_s: float | None = Field(default=None, gt=0)
    """Time of its requests that name none; without it limits.timeout_s."""

    share: float = Field(default=1.0, gt=0, le=1)
    """The most of limits.concurrent_requests that its requests may take; more are refused with 429."""


class TiersSettings(_Part):
    """Classes of service."""

    priority: TierSettings = TierSettings()
    default: TierSettings = TierSettings()
    flex: TierSettings = TierSettings(deadline_s=600.0, share=0.5)
    """It waits where others do not, so it has time, and may not fill the house."""

    def of(self, name: str) -> TierSettings:
        """What a class gets."""
        found: TierSettings = getattr(self, name)
        return found


class PredictiveSettings(_Part):
    """What the policy `predictive` does; each can be switched off, to see what it brings."""

    refuses: bool = True
    """Refuse a request with 429 as soon as its deadline cannot be met."""

    ages: bool = True
    """Leave every second batch to what is past due, in turn, and one in eight to flex, so that nothing starves."""

    sheds: bool = True
    """Count only requests for a batch that it answers in time."""

    groups: bool = True
    """Let lengths decide who shares a batch; if not, requests go in the order in which they are due."""

    hurries: bool = True
    """Of batches that pay about alike, send the shorter."""

    spares: bool = True
    """Let an answer begin only where it is worth more than what its steps take from those that are written already."""


class BatchingSettings(_Part):
    """The queues in front of the models."""

    policy: Literal["predictive", "dynamic", "batch_first", "immediate"] = "predictive"
    max_delay_s: float = Field(default=0.002, ge=0)
    """`dynamic`: how long the oldest request waits for company while the model has room."""

    ageing_s: float = Field(default=1.0, gt=0)
    """`batch_first`: a wait that counts as much as a full batch."""

    predictive: PredictiveSettings = PredictiveSettings()

    batch_rows: int = Field(default=32, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)
    """Source tokens of one batch, padding included. One longer row goes alone."""

    window_tokens: int = Field(default=2048, ge=1)
    """The same for question answering windows, where a prediction is wrong. Two cores compute 16 windows no faster than
    four by four (384 tokens: 361 against 305 ms each on a busy machine); a GPU does: set it to `batch_tokens` there."""

    batch_s: float = Field(default=0.1, gt=0)
    """How long a batch of several requests may be expected to take: what comes meanwhile waits for one to end, however
    long the books are that others ask about."""

    queue_tokens: int = Field(default=131_072, ge=1)
    """Source tokens that may wait for one model; what does not fit is refused with 429."""

    running_slots: int | None = Field(default=None, ge=1)
    """The most engine slots that rows at one place may take; without it a half more than the engine says it has."""

    running_windows: int = Field(default=32, ge=1)
    """Question answering windows that were sent and not answered yet."""


def _cache_folder() -> Path | None:
    """Where the user's programs keep what they can do without (XDG Base Directory Specification); None: nowhere."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "trident"
    try:
        return Path.home() / ".cache" / "trident"
    except RuntimeError:
        return None


class StateSettings(_Part):
    """What is learnt about a machine and its traffic, and kept for the next start."""

    keep: bool = True
    folder: Path | None = Field(default_factory=_cache_folder)
    """One small file for each bundle, machine and runtime; without a folder nothing is kept."""

    every_s: float = Field(default=60.0, gt=0)
    """Between two times that it is written, beside the end of the process."""

    calibration_s: float = Field(default=2.0, ge=0)
    """The longest that a place is tried out before its first request, where nothing is known of it; 0 is not at all."""


class TritonSettings(_Part):
    """Where Triton listens."""

    url: HostAndPort = "127.0.0.1:8001"
    """host:port of its gRPC service."""

    timeout_s: float = Field(default=5.0, gt=0)
    """For health questions."""


class LocalSettings(_Part):
    """The engine in this process (`runtime = local`)."""

    device: Literal["cpu", "cuda"] = "cpu"
    """cuda decodes on the first CUDA device, for bundles in fp16; it needs onnxruntime-gpu in onnxruntime's place."""

    slots: int = Field(default=32, ge=1)
    threads: int = Field(default=0, ge=0)
    """Threads of one operator; 0 is one for each physical core."""

    gap_steps: float = Field(default=3.0, ge=1)
    """Time between two tokens of a text while others' sources are encoded, in decode steps without that."""


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix="TRIDENT_", env_nested_delimiter="__", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    bundle: Path = PRETRAINED
    runtime: Literal["triton", "local"] = "triton"
    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    tiers: TiersSettings = TiersSettings()
    batching: BatchingSettings = BatchingSettings()
    state: StateSettings = StateSettings()
    triton: TritonSettings = TritonSettings()
    local: LocalSettings = LocalSettings()


def read_settings(**given: Any) -> Settings:
    """The environment's settings, with what is given in place of them. Raises ValueError, in one line."""
    check_names(os.environ, Settings)
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ValueError("; ".join(told(detail, given) for detail in error.errors())) from None
    except SettingsError as error:
        # A part may be given as a whole, and a list is: in JSON.
        raise ValueError(not_json(error, os.environ)) from None
