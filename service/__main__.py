"""`python -m service`: the gateway alone, in front of models that something else runs."""

from __future__ import annotations

import sys

from service.server import bind, run
from service.settings import read_settings


def main() -> None:
    """Serve as the environment says; mistakes in it become one line on stderr and exit status 1."""
    try:
        settings = read_settings()
        run(settings, bind(settings.server.host, settings.server.port))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
