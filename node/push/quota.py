"""What a client is told about its namespace's bounds: refused, or warned.

Source: distribution-spec, DENIED, TOOMANYREQUESTS and "Warnings"; RFC 7234 5.5.
"""

from attrs import evolve

from node.config.values import say_size
from node.errors import DENIED, TOOMANYREQUESTS, RegistryError
from node.records.quotas import OverQuota, Usage
from node.records.uploads import TooManyUploads

_CROWDED_SECONDS = 30
"""About what a layer takes: there is room when others have ended theirs."""


def over_quota(error: OverQuota) -> RegistryError:
    """Return the answer to a push that does not fit. Clients show the message, so that it says what is wrong."""
    held = f"the namespace {error.namespace} holds {say_size(error.used)} and may hold {say_size(error.limit)}"
    detail = {
        "namespace": error.namespace,
        "used_bytes": error.used,
        "limit_bytes": error.limit,
        "reason": "delete tags or repositories there, or ask for a larger quota; what is deleted counts until it is collected",
    }
    return RegistryError(evolve(DENIED, message=f"quota exceeded: {held}"), detail)


def too_many_uploads(error: TooManyUploads) -> RegistryError:
    """Return the answer to a push that would open one upload too many in its namespace."""
    detail = {
        "namespace": error.namespace,
        "maximum_uploads": error.most,
        "reason": f"the namespace {error.namespace} has {error.most} uploads open and may have no more "
        "(MAXIMUM_UPLOADS_PER_NAMESPACE): finish or cancel some, or wait until the abandoned ones expire",
    }
    return RegistryError(TOOMANYREQUESTS, detail, retry_after=_CROWDED_SECONDS)


def quota_warning(usage: Usage) -> str:
    """Return the text of a warning: plain ASCII without quotes."""
    limit = "without a limit" if usage.reject is None else f"and may hold {say_size(usage.reject)}"
    return f"quota: the namespace {usage.namespace} holds {say_size(usage.used)} {limit}"
