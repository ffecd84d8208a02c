"""Values that do not stand in the configuration itself: from a file, an environment variable, or systemd's credentials.

    DB_URI: {file: /run/secrets/db-uri}          the file's text, without the line's end
    secret_key: {env: US_STORE_SECRET}           the variable's text
    password: {credential: redis-password}       the file of that name in $CREDENTIALS_DIRECTORY (systemd's LoadCredential=)

Such a mapping may stand for any value at any depth. What it gives is text, and is shown in no message.
"""

from collections.abc import Mapping
from pathlib import Path

from node.config.values import Findings, Hidden, Unfit

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
SOURCES = ("file", "env", "credential")
_MOST = 64 * 1024
"""Bytes. Who names a larger file has named the wrong one."""


def resolve(document: Mapping[object, object], environ: Mapping[str, str], findings: Findings) -> dict[object, object]:
    """Return the mapping with the values that it names in place of their names; what cannot be had is an error in `findings`."""
    return {key: _resolve(value, str(key), environ, findings) for key, value in document.items()}


def _resolve(value: object, where: str, environ: Mapping[str, str], findings: Findings) -> object:
    match value:
        case {**only} if len(only) == 1 and (source := next(iter(only))) in SOURCES:
            return _read(str(source), only[source], where, environ, findings)
        case {**inner}:
            return {key: _resolve(held, f"{where}.{key}", environ, findings) for key, held in inner.items()}
        case list():
            return [_resolve(held, _place(where, at, held), environ, findings) for at, held in enumerate(value)]
        case _:
            return value


def _place(where: str, at: int, held: object) -> str:
    """Return how a message names an item of a list. A store's arguments are its second, and nobody counts them."""
    return where if isinstance(held, Mapping) and not set(held) & set(SOURCES) else f"{where}[{at}]"


def _read(source: str, name: object, where: str, environ: Mapping[str, str], findings: Findings) -> object:
    """Return the text; after an error something that no reader will complain about a second time."""
    readers = {"file": _from_file, "env": _from_environment, "credential": _from_credentials}
    text, reason = "", "there is nothing in it"
    if not isinstance(name, str) or not name:
        name, reason = "...", f"name the {source} in text"
    else:
        try:
            text = readers[source](name, environ)
        except Unfit as error:
            reason = str(error)
    if text:
        return Hidden(text)
    findings.wrong(where, f"{{{source}: {name}}}", reason)
    findings.unread.add(where)
    return Hidden("unread")


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    if name not in environ:
        raise Unfit("there is no such environment variable")
    return environ[name]


def _from_credentials(name: str, environ: Mapping[str, str]) -> str:
    folder = environ.get(CREDENTIALS_VARIABLE)
    if not folder:
        raise Unfit(f"{CREDENTIALS_VARIABLE} is not set: systemd sets it where the unit has LoadCredential={name}:...")
    if Path(name).name != name:
        raise Unfit("a credential's name has no slash")
    return _from_file(str(Path(folder) / name), environ)


def _from_file(name: str, _environ: Mapping[str, str]) -> str:
    path = Path(name)
    if not path.is_absolute():
        raise Unfit("write an absolute path")
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise Unfit(f"it cannot be read: {error.strerror or type(error).__name__}") from None
    if len(data) > _MOST:
        raise Unfit(f"it is larger than {_MOST} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Unfit("it is not UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")
