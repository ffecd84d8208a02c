"""Reads EXTRA_CA_CERTS: authorities that are trusted besides the system's, by everything that names no file of its own.

As Quay: a folder `extra_ca_certs` beside the configuration file counts without any key. The libraries behind stores, Redis and
PostgreSQL take one file that replaces their own list, so what they get is one file with the system's authorities and these.
"""

import atexit
import os
import ssl
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import certifi
from attrs import evolve

from engines import EngineSpec
from engines.s3_arguments import S3Arguments
from node.config.settings import LocationSettings, RedisSettings
from node.config.values import Findings, Unfit, read_text, show

KEY = "EXTRA_CA_CERTS"
_QUAYS = "extra_ca_certs"
_ENDINGS = frozenset({".crt", ".pem", ".cert", ".cer"})


def read_authorities(document: Mapping[str, object], folder: Path | None, findings: Findings) -> Path | None:
    """Return a file with the system's authorities and the extra ones; None where there are no extra ones, and after errors.

    The file is this process's own, is made once, and goes with it. `folder` is the configuration file's, None without one.
    """
    given = document.get(KEY)
    if given is None:
        place = None if folder is None else folder / _QUAYS
        if place is None or not place.is_dir():
            return None
    else:
        try:
            place = Path(read_text(given))
        except Unfit as error:
            findings.wrong(KEY, show(given), str(error))
            return None
    try:
        files = _files(place)
    except OSError as error:
        findings.wrong(KEY, show(str(place)), f"it cannot be read: {error.strerror or type(error).__name__}")
        return None
    texts = [text for path in files if (text := _read(path, findings)) is not None]
    if not texts:
        # A folder that Quay's operator left empty is no error.
        if given is not None and KEY not in {problem.key for problem in findings.problems}:
            right = f"name a PEM file, or a folder with such files ({', '.join(sorted(_ENDINGS))})"
            findings.wrong(KEY, show(str(place)), right)
        return None
    return _together("\n".join([_system(), *texts]))


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(path for path in place.iterdir() if path.suffix in _ENDINGS and path.is_file())
    return [place] if place.is_file() else []


def _read(path: Path, findings: Findings) -> str | None:
    """Return the certificates of one file, None after errors."""
    try:
        text = path.read_text(encoding="ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except OSError as error:
        # What OpenSSL finds wrong is an OSError, too.
        findings.wrong(
            KEY, show(str(path)), f"there are no certificates in it, in PEM: {error.strerror or 'unreadable'}"
        )
        return None
    except ValueError:
        findings.wrong(KEY, show(str(path)), "there are no certificates in it, in PEM")
        return None
    return text


def _system() -> str:
    """Return what OpenSSL trusts on this machine; where there is no such file, Mozilla's list, as certifi has it."""
    paths = ssl.get_default_verify_paths()
    places = [paths.cafile, f"{paths.capath}/ca-certificates.crt" if paths.capath else None, certifi.where()]
    return next(Path(place).read_text(encoding="utf-8") for place in places if place and Path(place).is_file())


@cache
def _together(text: str) -> Path:
    handle, name = tempfile.mkstemp(prefix="antipode-authorities-", suffix=".pem")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    path = Path(name)
    atexit.register(path.unlink, missing_ok=True)
    return path


def trust_stores(locations: Mapping[str, LocationSettings], authorities: Path) -> Mapping[str, LocationSettings]:
    """Return the locations with this file for those that check a certificate and name none."""
    return {name: evolve(location, engine=_trust(location.engine, authorities)) for name, location in locations.items()}


def _trust(engine: EngineSpec, authorities: Path) -> EngineSpec:
    given = engine.arguments
    if not isinstance(given, S3Arguments) or not given.verify_tls or given.ca_bundle is not None:
        return engine
    return evolve(engine, arguments=evolve(given, ca_bundle=str(authorities)))


def trust_redis(redis: RedisSettings, authorities: Path) -> RedisSettings:
    """Return where Redis is, with this file if it is reached over TLS and names none."""
    return evolve(redis, ca_file=str(authorities)) if redis.tls and redis.ca_file is None else redis
