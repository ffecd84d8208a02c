"""What a 401 says: where a client gets a token, for what, and what was wrong with the one it had. Pure.

Source: RFC 6750, 3; the Docker Registry v2 token authentication specification. Clients need the quotes.
"""

from collections.abc import Sequence

from attrs import evolve

from node.answers import Headers
from node.auth.scopes import Need
from node.config.settings import Settings
from node.errors import UNAUTHORIZED, RegistryError

INVALID = "invalid_token"
INSUFFICIENT = "insufficient_scope"
TOKEN_PATH = "/v2/auth"  # noqa: S105  # a path


def bearer(scheme: str, hostname: str, needs: Sequence[Need] = (), error: str = "") -> Headers:
    """Return the headers that send a client for a token. `error` says what is wrong with the one that it showed."""
    fields = [f'realm="{scheme}://{hostname}{TOKEN_PATH}"', f'service="{hostname}"']
    if needs:
        fields.append(f'scope="{" ".join(need.scope for need in needs)}"')
    if error:
        fields.append(f'error="{error}"')
    # Old clients learn from the first 401 that this is no registry of version 1, as Quay tells them, too.
    return (("www-authenticate", f"Bearer {','.join(fields)}"), ("docker-distribution-api-version", "registry/2.0"))


def basic(hostname: str) -> Headers:
    """Return the header that asks for a name and a password."""
    return (("www-authenticate", f'Basic realm="{hostname}"'),)


def not_proven(headers: Headers, settings: Settings) -> RegistryError:
    """Return the 401 for a name and a secret that are not right; it says how people log in, where that is not by a password."""
    reason = {"reason": "the name or the secret is wrong"}
    if settings.oidc is None:
        return RegistryError(UNAUTHORIZED, reason, headers=headers)
    # docker shows the message alone.
    way = f"people log in by antipode login {settings.server_hostname}; docker takes the token that it leaves, or a robot's"
    return RegistryError(evolve(UNAUTHORIZED, message=f"authentication required: {way}"), reason, headers=headers)


def unauthorized(headers: Headers, reason: str) -> RegistryError:
    """Return the 401."""
    return RegistryError(UNAUTHORIZED, {"reason": reason}, headers=headers)
