"""A lost peer is noticed on either side of a connection to Triton, and pings that ask for it are no attack."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2_grpc as services

from tests.waiting import wait_until

PINGING = [
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
"""As the gateway's, but more often."""


def test_a_quiet_client_that_pings_is_not_sent_away(triton_url: str) -> None:
    """Seven pings on a stream that carries nothing: by Triton's defaults the third one closes the connection."""
    requests: queue.SimpleQueue[None] = queue.SimpleQueue()
    with grpc.insecure_channel(triton_url, options=PINGING) as channel:
        stream = services.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests.get, None), timeout=8)
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        requests.put(None)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, ended.value.details()


CLIENT = """
import queue, sys
import grpc
from tritonclient.grpc import service_pb2 as messages, service_pb2_grpc as services
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = services.GRPCInferenceServiceStub(channel)
    stub.ServerReady(messages.ServerReadyRequest())
    stream = stub.ModelStreamInfer(iter(queue.SimpleQueue().get, None))
    print("open", flush=True)
    next(stream)
"""


def test_a_client_lost_in_silence_is_noticed(triton_url: str) -> None:
    """A stopped process closes nothing: the kernel still acknowledges what arrives, but no ping is answered."""
    client = subprocess.Popen([sys.executable, "-c", CLIENT, triton_url], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "open\n"
        ports = {each.laddr.port for each in psutil.Process(client.pid).net_connections("inet")}

        def connections() -> list[str]:
            """The server's side of the client's connections."""
            found = psutil.net_connections("inet")
            return [
                each.status
                for each in found
                if each.raddr and each.raddr.port in ports and each.status == psutil.CONN_ESTABLISHED
            ]

        assert connections()
        client.send_signal(signal.SIGSTOP)
        wait_until(lambda: not connections(), "the end of the lost client's connection", timeout_s=25)
    finally:
        client.kill()
        client.communicate()
