"""The HTTP gateway: tokenises, batches, talks to Triton (or to the engine in this process), answers.

    api ──▶ tasks ──▶ batching ──▶ inference ──▶ Triton
    HTTP    text ↔ tokens  queues      gRPC

Imports neither PyTorch nor training; of `deploy` only the engine package `deploy.triton`.
"""
