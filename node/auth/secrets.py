"""Secrets that programs use: made long and random, so that a fast hash of them is enough. Passwords of people: `passwords.py`."""

import hashlib
import secrets

ROBOT, APPLICATION, BOOTSTRAP = "apr_", "apt_", "apb_"
"""What each kind begins with, so that people and scanners of leaked secrets know it."""

_BYTES = 32


def new_secret(kind: str) -> str:
    """Return a new secret of a kind."""
    return kind + secrets.token_urlsafe(_BYTES)


def hash_secret(secret: str) -> str:
    """Return what the database keeps of a secret."""
    return f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
