"""Trident's model behind other servers: each is a program, `python -m deploy.benchmark.peers.NAME`.

All of them answer `POST /v1/qa` as Trident does, read questions and write answers with Trident's own code, and run the
same graph with the same session: what differs is how requests reach it. Each is tuned as its documentation says, from
the options in `options.py`, and runs in an environment of its own (`comparison/environments.py`).
"""
