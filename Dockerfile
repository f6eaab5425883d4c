# syntax=docker/dockerfile:1
# Two images of one product; docs/deployment.md says how they work together.
#
#   docker build --target gateway .    HTTP, tokenizer, queues: no PyTorch, no GPU
#   docker build --target triton .     Triton with the model repository of the shipped bundle
#
# Base images are pinned by tag. To pin them by digest, add the @sha256:… that `docker buildx imagetools inspect` prints.

FROM python:3.12.12-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/trident
ENV PATH=/opt/trident/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml README.md LICENSE ./
COPY deploy deploy
COPY model model
COPY service service
COPY training training
RUN --mount=type=cache,target=/root/.cache/pip pip install '.[serve]'


FROM build AS repository
# gpu: the stateless models run on the GPU; cpu: on a host without one.
ARG PROFILE=gpu
RUN trident repository build --output /srv/models --backend onnxruntime --profile "$PROFILE"


FROM python:3.12.12-slim-bookworm AS gateway
RUN groupadd --gid 10001 trident \
    && useradd --uid 10001 --gid trident --no-create-home --shell /usr/sbin/nologin trident
COPY --from=build /opt/trident /opt/trident
ENV PATH=/opt/trident/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/trident
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["trident"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--triton-url", "triton:8001"]


FROM nvcr.io/nvidia/tritonserver:26.11-py3 AS triton
# For the generator, a Python model, which decodes on the CPU: onnxruntime-gpu runs there too, and is what a decoder on
# the GPU will need. numpy stays below 2, which Triton's Python backend has misread without a word (docs/decisions/0001).
RUN pip3 install --no-cache-dir --break-system-packages 'numpy==1.26.4' 'onnxruntime-gpu==1.31.1'
COPY --from=repository /srv/models /models
ENV PYTHONDONTWRITEBYTECODE=1
# The image's own user triton-server.
USER 1000:1000
EXPOSE 8001 8002
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8000/v2/health/ready"]
# gRPC and metrics for the other containers; HTTP only for the health check. The rest as deploy/launcher.py has it.
CMD ["tritonserver", \
     "--model-repository=/models", \
     "--model-control-mode=none", \
     "--disable-auto-complete-config", \
     "--exit-on-error=true", \
     "--strict-readiness=true", \
     "--log-verbose=0", \
     "--grpc-address=0.0.0.0", \
     "--grpc-port=8001", \
     "--grpc-keepalive-time=5000", \
     "--grpc-keepalive-timeout=5000", \
     "--grpc-keepalive-permit-without-calls=1", \
     "--grpc-http2-max-pings-without-data=0", \
     "--grpc-http2-min-recv-ping-interval-without-data=1000", \
     "--grpc-http2-max-ping-strikes=0", \
     "--http-address=127.0.0.1", \
     "--http-port=8000", \
     "--metrics-address=0.0.0.0", \
     "--metrics-port=8002"]
