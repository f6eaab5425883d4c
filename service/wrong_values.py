"""What is wrong with a value, in words that name the limit: pydantic's errors, of requests and of settings alike.

Its own words are about its types and stages ("after validation"), which nobody who sends a value knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORDS = {
    "bool_parsing": "it should be true or false",
    "bool_type": "it should be true or false",
    "dict_type": "it should be an object",
    "finite_number": "it should be a finite number",
    "float_parsing": "it should be a number",
    "float_type": "it should be a number",
    "greater_than": "it should be more than {gt}",
    "greater_than_equal": "it should be at least {ge}",
    "int_from_float": "it should be a whole number",
    "int_parsing": "it should be a whole number",
    "int_parsing_size": "it should be a whole number of fewer digits",
    "int_type": "it should be a whole number",
    "less_than": "it should be less than {lt}",
    "less_than_equal": "it should be at most {le}",
    "list_type": "it should be an array",
    "literal_error": "it should be {expected}",
    "model_attributes_type": "it should be an object",
    "model_type": "it should be an object",
    "path_type": "it should be a path",
    "string_type": "it should be a string",
    "tuple_type": "it should be an array",
}
"""By pydantic's names of kinds of errors."""

ITEMS = {"too_short": "min_length", "too_long": "max_length"}
CHARACTERS = {"string_too_short": "min_length", "string_too_long": "max_length"}
PREFIX = "Value error, "


def wanted(kind: str, message: str, context: Mapping[str, Any]) -> str:
    """What a value should be, by the kind, the message and the context of pydantic's error."""
    if kind in ITEMS or kind in CHARACTERS:
        limit = context[(ITEMS | CHARACTERS)[kind]]
        short = kind.endswith("too_short")
        if short and limit == 1:
            return "it should not be empty"
        unit = "item" if kind in ITEMS else "character"
        return f"it should have at {'least' if short else 'most'} {limit} {unit}{'' if limit == 1 else 's'}"
    if kind in WORDS:
        return WORDS[kind].format_map(context)
    return message.removeprefix(PREFIX).replace("Input should", "it should")
