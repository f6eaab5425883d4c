"""Settings that are more than numbers and words, and what is told of one that is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from service.wrong_values import wanted

PREFIX, DELIMITER = "TRIDENT_", "__"


def _host_and_port(url: str) -> str:
    if not re.fullmatch(r"[^\s/]+:\d+", url):
        raise ValueError("it should be host:port, as 127.0.0.1:8001 is, without http://")
    return url


def _network(value: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(value))
    except ValueError:
        raise ValueError("it should be an address, or a network without bits behind its length: 10.0.0.0/8") from None


HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]


def told(detail: ErrorDetails, given: Mapping[str, Any]) -> str:
    """One wrong setting, by its name in the environment unless it is one of those `given` otherwise."""
    path = [str(each) for each in detail["loc"]]
    name = ".".join(path) if path[0] in given else PREFIX + DELIMITER.join(path).upper()
    if detail["type"] == "extra_forbidden":
        return f"{name} is no setting: service/settings.py has them all"
    should = wanted(detail["type"], detail["msg"], detail.get("ctx") or {})
    if isinstance(detail["input"], str | int | float):
        return f"{name} is {detail['input']!r}: {should}"
    # Of a whole part: the message names what does not fit together.
    return should


def not_json(error: SettingsError, environment: Mapping[str, str]) -> str:
    """A setting that is read as JSON, as lists and whole parts are, and is none. The error knows only its part."""
    for name, value in environment.items():
        if name.upper().startswith(PREFIX):
            try:
                json.loads(value)
            except ValueError as broken:
                if str(broken) == str(error.__cause__):
                    return (
                        f"{name} is {value!r}, which is not JSON ({broken}): a list is written as "
                        '["10.0.0.0/8"], a part of the settings as {"port": 9000}'
                    )
    return f"{error}: {error.__cause__}"
