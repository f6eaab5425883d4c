"""Everything that can go wrong with a request, as it is told to the client.

Code anywhere in the gateway raises these; `api.errors` puts them into the one envelope of all errors.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException


class ServiceError(HTTPException):
    """An error with an HTTP status.

    A kind of HTTPException, because FastAPI turns any other exception that is raised while a body is read into a
    status 400 of its own.
    """

    status = 500
    type = "server_error"
    code = "internal"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(status_code=self.status, detail=message)
        self.message, self.param, self.retry_after_s = message, param, retry_after_s


class InvalidInput(ServiceError):
    """A field whose value cannot be served."""

    status = 422
    type = "invalid_request_error"
    code = "invalid_value"


class InvalidJson(InvalidInput):
    """A body that is not JSON."""

    code = "invalid_json"


class ContextLengthExceeded(InvalidInput):
    """A text of more tokens than the model reads."""

    status = 400
    code = "context_length_exceeded"

    def __init__(self, what: str, tokens: int, limit: int, *, param: str, mend: str = "shorten it") -> None:
        super().__init__(f"{what} has {tokens} tokens, and {limit} is the limit: {mend}", param=param)


class BodyTooLarge(InvalidInput):
    """More bytes than the gateway reads."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(InvalidInput):
    """A body that does not claim to be JSON."""

    status = 415
    code = "unsupported_media_type"


class Overloaded(ServiceError):
    """No room in a queue; carries the time after which it is worth trying again."""

    status = 429
    type = "overloaded_error"
    code = "overloaded"


class Unavailable(ServiceError):
    """The model cannot be reached, or the gateway is draining."""

    status = 503
    code = "unavailable"


class DeadlineExceeded(ServiceError):
    """The request's time is over."""

    status = 504
    code = "deadline_exceeded"


class InferenceFailed(ServiceError):
    """The model was reached and failed on this request."""
