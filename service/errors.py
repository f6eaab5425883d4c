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
    rejection: str | None = None
    """Reason in `requests_rejected_total`, where the service refuses what it could serve at another time."""

    ends_connection = False
    """Whether part of the request was left unread, so that nothing else can come over its connection."""

    should_retry: bool | None = None
    """Whether the same request may be served at another time; None leaves that to the client."""

    retry_after_s: int | None = None
    """When it is worth trying again, where nothing better is known."""

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(status_code=self.status, detail=message)
        self.message, self.param = message, param
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class InvalidInput(ServiceError):
    """A field whose value cannot be served."""

    status = 422
    type = "invalid_request_error"
    code = "invalid_value"


class MissingField(InvalidInput):
    """A field that the request needs."""

    code = "missing_field"


class UnknownField(InvalidInput):
    """A field that means nothing here: most often a typing mistake."""

    code = "unknown_field"


class UnsupportedParameter(InvalidInput):
    """A field of OpenAI's that would change the answer, and that this service does not offer."""

    code = "unsupported_parameter"


class InvalidJson(InvalidInput):
    """A body that is not JSON."""

    code = "invalid_json"


class MalformedRequest(InvalidInput):
    """Bytes that are no HTTP request."""

    status = 400
    code = "malformed_request"
    ends_connection = True


class DeadlineUnreachable(InvalidInput):
    """A request that takes longer, by itself, than it allows."""

    status = 400
    code = "deadline_unreachable"


class ContextLengthExceeded(InvalidInput):
    """A text of more tokens than the model reads."""

    status = 400
    code = "context_length_exceeded"

    def __init__(
        self, what: str, tokens: int, limit: int, *, param: str, fix: str = "shorten it", at_least: bool = False
    ) -> None:
        """`at_least`: the tokens were not counted, but are known to be no fewer."""
        count = f"at least {tokens}" if at_least else str(tokens)
        super().__init__(f"{what} has {count} tokens, and {limit} is the limit: {fix}", param=param)


class NotFound(InvalidInput):
    """A path that leads nowhere."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """A model that is not served here."""

    code = "model_not_found"


class MethodNotAllowed(InvalidInput):
    """A path that is called by another method."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(InvalidInput):
    """A request that does not arrive."""

    status = 408
    code = "request_timeout"
    ends_connection = True


class BodyTooLarge(InvalidInput):
    """More bytes than the gateway reads."""

    status = 413
    code = "body_too_large"
    ends_connection = True


class HeadersTooLarge(InvalidInput):
    """More bytes of URL and headers than the gateway reads."""

    status = 431
    code = "headers_too_large"
    ends_connection = True


class UnsupportedMediaType(InvalidInput):
    """A body that does not claim to be JSON."""

    status = 415
    code = "unsupported_media_type"


class Overloaded(ServiceError):
    """No room in a queue; carries the time after which it is worth trying again."""

    status = 429
    type = "overloaded_error"
    code = "overloaded"
    rejection = "queue_full"
    should_retry = True
    retry_after_s = 1


class TooManyRequests(Overloaded):
    """As many requests in flight as there may be."""

    rejection = "concurrency"


class TooManyRequestsFromPeer(Overloaded):
    """As many requests in flight from one address as there may be."""

    rejection = "peer"


class TooManyBytes(Overloaded):
    """As many bytes of bodies in flight as there may be."""

    rejection = "body_bytes"
    ends_connection = True


class TooManyFromPeer(Overloaded):
    """As many connections from one address as there may be."""

    rejection = "connections"
    ends_connection = True


class Unavailable(ServiceError):
    """The model cannot be reached."""

    status = 503
    code = "unavailable"
    rejection = "unavailable"
    should_retry = True
    retry_after_s = 5


class Draining(Unavailable):
    """The gateway finishes what it has, and takes nothing new."""

    rejection = "draining"
    retry_after_s = 1


class TooManyConnections(Unavailable):
    """As many connections as there may be."""

    rejection = "connections"
    ends_connection = True
    retry_after_s = 1


class DeadlineExceeded(ServiceError):
    """The request's time is over. With the same time the same would come again, at the cost of the same work."""

    status = 504
    code = "deadline_exceeded"
    rejection = "deadline"
    should_retry = False


class InferenceFailed(ServiceError):
    """The model was reached and failed on this request."""


class ClientGone(Exception):
    """The client closed the connection: nobody is left to be told anything."""
