"""What is encrypted at rest in the database: AES-256-GCM under a key derived from DATABASE_SECRET_KEY."""

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_MARK = "a1$"
_PLAIN, _SEALED = b"p$", b"s$"
_NONCE = 12


class Sealed(Exception):
    """It was encrypted with another key, or is damaged."""


class Sealer:
    """Encrypts and decrypts. `context` says what a value is for: one put in another's place cannot be decrypted."""

    def __init__(self, secret_key: str) -> None:
        derived = HKDF(SHA256(), 32, salt=None, info=b"antipode database secrets").derive(secret_key.encode())
        self._cipher = AESGCM(derived)

    def seal(self, plain: bytes, context: str) -> str:
        """Return what may be kept."""
        nonce = os.urandom(_NONCE)
        return _MARK + base64.b64encode(nonce + self._cipher.encrypt(nonce, plain, context.encode())).decode()

    def unseal(self, kept: str, context: str) -> bytes:
        """Return what was sealed. Raises Sealed."""
        try:
            data = base64.b64decode(kept.removeprefix(_MARK), validate=True)
            return self._cipher.decrypt(data[:_NONCE], data[_NONCE:], context.encode())
        except (InvalidTag, binascii.Error, ValueError) as error:
            raise Sealed("encrypted with another DATABASE_SECRET_KEY") from error


def keep_secret(secret: bytes, secret_key: str | None, context: str) -> bytes:
    """Return what the database keeps: sealed where the registry has a DATABASE_SECRET_KEY."""
    if secret_key is None:
        return _PLAIN + secret
    return _SEALED + Sealer(secret_key).seal(secret, context).encode()


def open_secret(kept: bytes, secret_key: str | None, context: str) -> bytes:
    """Return the secret. Raises Sealed where it was encrypted with another key."""
    if kept.startswith(_PLAIN):
        return kept.removeprefix(_PLAIN)
    if secret_key is None:
        raise Sealed("encrypted, and there is no DATABASE_SECRET_KEY")
    return Sealer(secret_key).unseal(kept.removeprefix(_SEALED).decode(), context)
