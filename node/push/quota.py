"""What a client is told about its namespace's quota: refused (spec: DENIED), or warned (spec: "Warnings", RFC 7234 5.5)."""

from attrs import evolve

from node.config_values import say_size
from node.errors import DENIED, RegistryError
from node.records.quotas import OverQuota, Usage


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


def quota_warning(usage: Usage) -> str:
    """Return the text of a warning: plain ASCII without quotes."""
    limit = "without a limit" if usage.reject is None else f"and may hold {say_size(usage.reject)}"
    return f"quota: the namespace {usage.namespace} holds {say_size(usage.used)} {limit}"
