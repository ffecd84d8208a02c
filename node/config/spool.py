"""Reads a spool: a folder for bytes on their way, and how much it may hold."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve

from node.config.keys import nearest
from node.config.settings import SpoolSettings
from node.config.values import MIB, Findings, Unfit, parse_size, read_text, show

_KEYS = ("path", "max_bytes")


def read_spool(document: Mapping[str, object], key: str, default: SpoolSettings, findings: Findings) -> SpoolSettings:
    """Return the spool that `key` describes as {path, max_bytes}; `default` where it says nothing. Errors go to `findings`."""
    given = document.get(key)
    if given is None:
        return default
    if not isinstance(given, Mapping):
        findings.wrong(key, show(given), "write {path: /var/lib/antipode, max_bytes: 1GiB}; both may be left out")
        return default
    for name in given:
        if name not in _KEYS:
            meant = nearest(str(name), [known.upper() for known in _KEYS])
            findings.wrong(
                f"{key}.{name}",
                "an unknown key",
                f"did you mean {meant.lower()}?" if meant else "write path or max_bytes",
            )
    spool = default
    try:
        if given.get("path") is not None:
            spool = evolve(spool, path=_read_folder(given["path"]))
    except Unfit as error:
        findings.wrong(f"{key}.path", show(given["path"]), str(error))
    try:
        if given.get("max_bytes") is not None:
            spool = evolve(spool, most=_read_room(given["max_bytes"]))
    except Unfit as error:
        findings.wrong(f"{key}.max_bytes", show(given["max_bytes"]), str(error))
    return spool


def folder_of(spool: SpoolSettings) -> Path:
    """Return the folder, the system's temporary one where none is named."""
    return spool.path or Path(tempfile.gettempdir())


def _read_folder(value: object) -> Path:
    path = Path(read_text(value))
    try:
        there = path.is_absolute() and path.is_dir()
    except OSError as error:
        raise Unfit(f"it cannot be looked at: {error.strerror or type(error).__name__}") from None
    if not there:
        raise Unfit("write the absolute path of a folder that exists on this machine")
    return path


def _read_room(value: object) -> int:
    room = parse_size(value)
    if 0 < room < MIB:
        raise Unfit("write at least 1 MiB, or 0 to do without")
    return room
