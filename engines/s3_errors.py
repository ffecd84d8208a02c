"""What S3 stores and their client library say when something fails, in the contract's words: the one table of its kind."""

from botocore.exceptions import ClientError, NoCredentialsError, ParamValidationError, PartialCredentialsError

from .contract import EngineError, EngineRefused, EngineUnavailable, ObjectMissing, PartsMissing

_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_PARTS = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall"})
_BUSY = frozenset(
    {"SlowDown", "RequestTimeout", "OperationAborted", "InternalError", "ServiceUnavailable", "Throttling"}
)


def translate(where: str, error: Exception, *, of_parts: bool = False) -> EngineError:
    """Return the contract's error for what the library raised; its text begins with `where` and holds no secret.

    `of_parts` is true for calls on a multi-part write: Ceph says NoSuchKey where others say NoSuchUpload.
    """
    if isinstance(error, ClientError):
        code, status = error_code(error), error_status(error)
        text = f"{where}: {code or status}: {error.response.get('Error', {}).get('Message') or f'status {status}'}"
        if code in _PARTS or (of_parts and code in _MISSING):
            return PartsMissing(text)
        if code in _MISSING:
            return ObjectMissing(text)
        if code in _BUSY or status >= 500 or status == 429:
            return EngineUnavailable(text)
        return EngineRefused(text)
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ParamValidationError):
        return EngineRefused(f"{where}: {error}")
    return EngineUnavailable(f"{where}: {str(error) or type(error).__name__}")


def is_missing(error: ClientError) -> bool:
    """Whether the store says that there is no such object (or, to a HEAD, no such bucket)."""
    return error_code(error) in _MISSING


def error_code(error: ClientError) -> str:
    """Return the store's own code, like NoSuchKey; "" where it gave none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def error_status(error: ClientError) -> int:
    """Return the HTTP status of the answer, 0 where there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
