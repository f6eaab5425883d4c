"""A peer of a few lines: answers every question alike, with a child process beside it, as frameworks have workers.

Started as `python small_peer.py PORT [STATUS]`; with a status it ends with that in place of serving.
"""

from __future__ import annotations

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = b'{"answers": [{"text": "Elias Berg", "start": 36, "end": 46, "score": 0.9}], "no_answer_score": 0.1}'
WORKER = [sys.executable, "-c", "import signal; signal.pause()"]


class Peer(BaseHTTPRequestHandler):
    """Answers at once."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: object) -> None:
        """Keep the log for what matters."""


def main(port: str, status: str | None = None) -> None:
    if status is not None:
        print("the model does not load", flush=True)
        raise SystemExit(int(status))
    # In a session of its own: a signal to the server's group does not reach it.
    subprocess.Popen(WORKER, start_new_session=True)
    ThreadingHTTPServer(("127.0.0.1", int(port)), Peer).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
