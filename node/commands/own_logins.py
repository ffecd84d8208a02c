"""The logins of `antipode login`: a file of the user's own, with an application token for each registry, that nobody else can read.

Loads nothing of the node.
"""

import json
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from attrs import asdict, field, frozen

from node.config.values import Unfit

_MOST = 1 << 20


@frozen
class OwnLogin:
    """A login. `expires` as the registry said it; None: never."""

    account: str
    id: str
    secret: str = field(repr=False)
    expires: str | None = None

    def ended(self, now: datetime) -> bool:
        """Tell whether its token has ended."""
        return self.expires is not None and datetime.fromisoformat(self.expires) <= now


def place(environment: Mapping[str, str]) -> Path:
    """Return where the logins are kept."""
    home = Path(environment.get("HOME", "/nonexistent"))
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "antipode", "logins.json")


def read_login(path: Path, host: str) -> OwnLogin | None:
    """Return the login for a registry, if it has not ended. Raises Unfit."""
    found = _read(path).get(host)
    if not isinstance(found, dict):
        return None
    try:
        login = OwnLogin(**found)
        return None if login.ended(datetime.now(UTC)) else login
    except (TypeError, ValueError):
        raise Unfit(f"{path}: what it has for {host} is no login; log in again") from None


def keep_login(path: Path, host: str, login: OwnLogin | None) -> None:
    """Keep a login in place of the one before, or with None none. Raises Unfit."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = {name: value for name, value in _read(path).items() if name != host}
        if login is not None:
            kept[host] = asdict(login)
        # Beside it and then in its place: a crash leaves the old one whole, and nobody sees half of one.
        fresh = path.with_name(f".{path.name}.{token_hex(8)}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123  # a descriptor
                json.dump(kept, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise Unfit(f"{path} cannot be written: {error.strerror or type(error).__name__}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MOST)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Unfit(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise Unfit(f"{path}: others may read it, and it has tokens: chmod 600 it, or delete it and log in again")
    return read_logins(data, str(path))


def read_logins(data: bytes, name: str) -> dict[str, Any]:
    """Return what a file of logins has. Raises Unfit."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Unfit(f"{name} is no file of logins; delete it and log in again")
    return document
