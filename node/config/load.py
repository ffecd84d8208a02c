"""Makes `Settings` from the YAML file and the environment; finds every error before it gives up.

Order, as in Quay: the file, then QUAY_OVERRIDE_CONFIG (a JSON object whose keys replace the file's), then
QUAY_DISTRIBUTED_STORAGE_PREFERENCE, then the defaults in `Settings`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import yaml
from attrs import evolve

from node.config.authorities import read_authorities, trust_redis, trust_stores
from node.config.database import describe_database, read_database, read_replicas, trust_database
from node.config.edge import read_edge
from node.config.federation import read_federation
from node.config.hops import open_hops
from node.config.keys import KEYS, SUPPORTED, nearest
from node.config.ldap import read_ldap
from node.config.oidc import ENDING, read_oidc
from node.config.quay_keys import is_unsupported
from node.config.redis import read_redis
from node.config.secrets import resolve
from node.config.settings import CONNECTIONS_OVER_TLS, Settings, SpoolSettings
from node.config.spool import read_spool
from node.config.storage import check_connections, read_storage
from node.config.teams import check_syncing
from node.config.values import Findings, Problem, Unfit, say_duration, say_size, show

__all__ = ["OVERRIDE_VARIABLE", "ConfigurationErrors", "Problem", "describe_database", "load_settings", "read_settings"]

OVERRIDE_VARIABLE = "QUAY_OVERRIDE_CONFIG"
_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in attrs.fields(Settings)}
# S3: a multi-part write has at most 10,000 parts.
_MOST_PARTS = 10_000


class ConfigurationErrors(Exception):
    """A configuration that cannot be used. `problems` has every error, in the order found; `str(error)` is one a line."""

    def __init__(self, problems: tuple[Problem, ...], warnings: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
        self.warnings = warnings


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also notes keys that stand twice in one mapping (YAML would let the last one win)."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[Problem] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping."""
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                self.twice.append(Problem(key.value, f"lines {seen[key.value]} and {line}", "keep one of them"))
            seen[key.value] = line
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, name: str, findings: Findings) -> dict[object, object]:
    """Return the file's mapping; an empty one after errors."""
    loader = _Loader(text)
    try:
        document = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "something"
        # The parser's whole text repeats the line, and words in it the line's: perhaps a password that begins with "*".
        problem = re.sub(r"'[^'\s]{2,}'", "...", getattr(error, "problem", None) or "it cannot be read")
        findings.wrong(name, where, f"this is not YAML: {problem}")
        return {}
    except ValueError:
        findings.wrong(name, "a value that YAML cannot read", "put dates and numbers with colons in quotes")
        return {}
    except RecursionError:
        findings.wrong(name, "brackets in brackets, hundreds deep", "close them")
        return {}
    finally:
        loader.dispose()
    findings.problems.extend(loader.twice)
    if not isinstance(document, dict):
        findings.wrong(name, show(document), "write a mapping of keys to values")
        return {}
    return document


def _overlay(document: dict[object, object], environ: Mapping[str, str], findings: Findings) -> dict[object, object]:
    """Return the document with the keys of QUAY_OVERRIDE_CONFIG in place of the file's."""
    text = environ.get(OVERRIDE_VARIABLE, "")
    if not text.strip():
        return document
    try:
        override = json.loads(text)
    except ValueError as error:
        at = f"at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else "somewhere"
        findings.wrong(OVERRIDE_VARIABLE, f"text that is not JSON {at}", "write a JSON object of keys and values")
        return document
    if not isinstance(override, dict):
        findings.wrong(OVERRIDE_VARIABLE, show(override, secret=True), "write a JSON object of keys and values")
        return document
    return {**document, **override}


def _check_names(document: Mapping[object, object], findings: Findings) -> dict[str, object]:
    """Return the supported keys; call likely slips errors, and name what is Quay's or unknown in one warning each."""
    known: dict[str, object] = {}
    unsupported, unknown = [], []
    for name, value in document.items():
        if not isinstance(name, str):
            findings.wrong(str(name), show(name), "a key must be text")
        elif name in SUPPORTED or (name.endswith(ENDING) and not is_unsupported(name)):
            known[name] = value
        elif is_unsupported(name):
            unsupported.append(name)
        elif (meant := nearest(name, SUPPORTED)) is not None:
            findings.wrong(name, "an unknown key", f"did you mean {meant}?")
        else:
            unknown.append(name)
    if unsupported:
        findings.warn(f"keys of Quay that are not supported and ignored: {', '.join(sorted(unsupported))}")
    if unknown:
        findings.warn(f"unknown keys, ignored: {', '.join(sorted(unknown))}")
    return known


def _read_plain(document: Mapping[str, object], findings: Findings) -> dict[str, Any]:
    """Return the fields that the table's keys fill; a key without a value counts as absent."""
    values: dict[str, Any] = {}
    for key in KEYS:
        value = document.get(key.name)
        if value is None:
            if _DEFAULTS[key.field] is attrs.NOTHING:
                findings.wrong(key.name, "nothing", "it is required: write the name that clients use")
            continue
        try:
            values[key.field] = key.read(value)
        except Unfit as error:
            findings.wrong(key.name, show(value, secret=key.secret), str(error))
    return values


def _check_together(values: Mapping[str, Any], findings: Findings) -> None:
    """Find what is right by itself and wrong beside the rest."""

    def value(field: str) -> Any:
        return values.get(field, _DEFAULTS[field])

    layer, part, memory = value("maximum_layer_size"), value("part_size"), value("part_memory")
    if layer > part * _MOST_PARTS:
        findings.wrong(
            "MAXIMUM_LAYER_SIZE",
            say_size(layer),
            f"{_MOST_PARTS} parts of PART_SIZE ({say_size(part)}) hold at most {say_size(part * _MOST_PARTS)}",
        )
    # One part being filled and one on its way is the least that a single upload needs.
    if memory < 2 * part:
        findings.wrong("PART_MEMORY", say_size(memory), f"write at least twice PART_SIZE: {say_size(2 * part)}")
    _check_durations(value, findings)


def _check_durations(value: Callable[[str], Any], findings: Findings) -> None:
    """Find durations that would let something go while somebody relies on it."""
    retention, needed = value("deleted_blob_retention"), value("presign_lifetime") + value("metadata_staleness")
    if retention < needed:
        findings.wrong(
            "DELETED_BLOB_RETENTION",
            say_duration(retention),
            "a pull may name bytes that are gone: write at least PRESIGN_LIFETIME plus METADATA_STALENESS, "
            f"which is {say_duration(needed)}",
        )
    grace, age = value("garbage_grace"), value("upload_max_age")
    if grace <= age:
        findings.wrong(
            "GARBAGE_GRACE",
            say_duration(grace),
            "the first blobs of a slow push would go before its manifest comes: write more than UPLOAD_MAX_AGE, "
            f"which is {say_duration(age)}",
        )
    window, options = value("tag_expiration"), value("tag_expiration_options")
    if window not in options:
        findings.wrong(
            "DEFAULT_TAG_EXPIRATION",
            say_duration(window),
            f"write one of TAG_EXPIRATION_OPTIONS: {', '.join(map(say_duration, options))}",
        )


def _check_open(values: Mapping[str, Any], document: Mapping[str, object], findings: Findings) -> None:
    """Say aloud that a registry is open to everybody; where it is not, it needs a key for its secrets."""
    if values.get("open_registry"):
        findings.warn("FEATURE_OPEN_REGISTRY: anyone who reaches this node can push, pull and delete everything")
    elif document.get("FEATURE_OPEN_REGISTRY") in (None, False) and document.get("DATABASE_SECRET_KEY") is None:
        findings.wrong(
            "DATABASE_SECRET_KEY",
            "nothing",
            "it is required, because the keys that sign tokens are encrypted with it: write at least 16 random characters, in "
            "quotes, the same in every region; or set FEATURE_OPEN_REGISTRY: true if anyone may do anything",
        )


def read_settings(document: Mapping[object, object], environ: Mapping[str, str]) -> Settings:
    """Return the settings in a file's mapping and the environment.

    Raises:
        ConfigurationErrors: with everything that is wrong.

    """
    return _read(_overlay(dict(document), environ, findings := Findings()), environ, findings)


def _read(
    document: Mapping[object, object], environ: Mapping[str, str], findings: Findings, folder: Path | None = None
) -> Settings:
    """Return the settings; `folder` is the file's."""
    known = _check_names(resolve(document, environ, findings), findings)
    values = _read_plain(known, findings)
    _check_together(values, findings)
    _check_open(values, known, findings)
    scheme = values.get("scheme", None if known.get("PREFERRED_URL_SCHEME") else _DEFAULTS["scheme"])
    edge = read_edge(known, folder, scheme, findings)
    database = read_database(known, findings)
    replicas = read_replicas(known, findings)
    storage = read_storage(
        known,
        environ,
        replicate=bool(values.get("replicate")),
        allow_local=bool(values.get("allow_local_replication")),
        findings=findings,
    )
    if storage is not None:
        streams, per_location, parts = (
            values.get(name, _DEFAULTS[name])
            for name in ("copy_streams", "copy_streams_per_location", "copy_parts_per_blob")
        )
        check_connections(storage, streams, per_location, parts, findings)
    redis = read_redis(known, findings)
    tee_spool = read_spool(known, "TEE_SPOOL", _DEFAULTS["tee_spool"], findings)
    without = known.get("UPLOAD_SPOOL") is None
    upload_spool = read_spool(
        known, "UPLOAD_SPOOL", _DEFAULTS["upload_spool"] if without else SpoolSettings(), findings
    )
    authorities = read_authorities(known, folder, findings)
    ldap = read_ldap(known, findings, authorities)
    oidc = read_oidc(known, findings)
    check_syncing(known, oidc, findings)
    federation = read_federation(known, findings)
    if values.get("replicate") and database is not None and storage is not None:
        for hop in open_hops(storage.locations, database.uri, redis, [replica.uri for replica in replicas]):
            findings.warn(f"regions without TLS: {hop}")
    if findings.problems or database is None or storage is None:
        raise ConfigurationErrors(tuple(findings.problems), tuple(findings.warnings))
    if authorities is not None:
        storage = evolve(storage, locations=trust_stores(storage.locations, authorities))
        database = trust_database(database, authorities)
        replicas = tuple(trust_database(replica, authorities) for replica in replicas)
        redis = redis and trust_redis(redis, authorities)
    if database.pool is not None:
        values["database_pool"] = database.pool
    if edge.tls is not None:
        values.setdefault("maximum_connections", CONNECTIONS_OVER_TLS)
    return Settings(
        **values,
        database_uri=database.uri,
        read_replicas=tuple(replica.uri for replica in replicas),
        locations=storage.locations,
        preference=storage.preference,
        default_locations=storage.default_locations,
        edge=edge,
        redis=redis,
        ldap=ldap,
        oidc=oidc,
        federation=federation,
        tee_spool=tee_spool,
        upload_spool=upload_spool,
        authorities=authorities,
        warnings=tuple(findings.warnings),
    )


def load_settings(path: str | Path, environ: Mapping[str, str]) -> Settings:
    """Return the settings in the YAML file at `path`, as the environment changes them.

    Raises:
        ConfigurationErrors: with everything that is wrong, the file itself included.

    """
    name, findings = str(path), Findings()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationErrors((Problem(name, "no readable file", error.strerror or str(error)),)) from error
    except UnicodeDecodeError as error:
        raise ConfigurationErrors(
            (Problem(name, f"bytes that are not UTF-8 at {error.start}", "save it as UTF-8"),)
        ) from None
    document = _parse_yaml(text, name, findings)
    if findings.problems and not document:
        # Every key would be missing now: only what is wrong with the file says anything.
        raise ConfigurationErrors(tuple(findings.problems))
    return _read(_overlay(document, environ, findings), environ, findings, Path(path).parent)
