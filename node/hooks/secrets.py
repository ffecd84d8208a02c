"""How webhooks' secrets are kept: encrypted under DATABASE_SECRET_KEY where the registry has one."""

from node.auth.sealing import Sealed, Sealer

__all__ = ["Sealed", "keep_secret", "open_secret"]

_CONTEXT = "webhook"
_PLAIN, _SEALED = b"p$", b"s$"


def keep_secret(secret: bytes, secret_key: str | None) -> bytes:
    """Return what the database keeps."""
    if secret_key is None:
        return _PLAIN + secret
    return _SEALED + Sealer(secret_key).seal(secret, _CONTEXT).encode()


def open_secret(kept: bytes, secret_key: str | None) -> bytes:
    """Return the secret. Raises Sealed where it was encrypted with another key."""
    if kept.startswith(_PLAIN):
        return kept.removeprefix(_PLAIN)
    if secret_key is None:
        raise Sealed("encrypted, and there is no DATABASE_SECRET_KEY")
    return Sealer(secret_key).unseal(kept.removeprefix(_SEALED).decode(), _CONTEXT)
