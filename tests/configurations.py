"""A configuration that works, and ways to change it: what the tests of the configuration start from."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from node.config.load import ConfigurationErrors, read_settings
from node.config.settings import Settings

EXAMPLE = """
SERVER_HOSTNAME: 127.0.0.1:8100
PREFERRED_URL_SCHEME: http
DB_URI: postgresql://antipode@127.0.0.1:5544/antipode
USER_EVENTS_REDIS: {host: 127.0.0.1, port: 6380}
DISTRIBUTED_STORAGE_CONFIG:
  us: [RadosGWStorage, {hostname: 127.0.0.1, port: 7480, is_secure: false, access_key: A, secret_key: B,
                        bucket_name: us-blobs, storage_path: /registry}]
  eu: [RadosGWStorage, {hostname: 127.0.0.1, port: 7481, is_secure: false, access_key: C, secret_key: D,
                        bucket_name: eu-blobs, storage_path: /registry}]
DISTRIBUTED_STORAGE_PREFERENCE: [us, eu]
DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS: [us, eu]
FEATURE_STORAGE_REPLICATION: true
FEATURE_OPEN_REGISTRY: true
"""
ABSENT: Any = object()
SECRETS = ("hunter2", "s3cr3t")


def document(**changes: Any) -> dict[object, Any]:
    """Return the example with keys replaced, or left out where the value is ABSENT."""
    merged = {**yaml.safe_load(EXAMPLE), **changes}
    return {key: value for key, value in merged.items() if value is not ABSENT}


def settings(environ: Mapping[str, str] | None = None, /, **changes: Any) -> Settings:
    return read_settings(document(**changes), environ or {})


def errors(environ: Mapping[str, str] | None = None, /, **changes: Any) -> list[str]:
    """Return the errors' lines; whatever they are, they tell no secret."""
    with pytest.raises(ConfigurationErrors) as caught:
        settings(environ, **changes)
    lines = [str(problem) for problem in caught.value.problems]
    assert not [line for line in (*lines, *caught.value.warnings) for secret in SECRETS if secret in line]
    return lines


def only_error(environ: Mapping[str, str] | None = None, /, **changes: Any) -> str:
    (line,) = errors(environ, **changes)
    return line


def stores(**arguments: Any) -> dict[str, Any]:
    """Return the example's stores, with arguments of `us` replaced."""
    config = copy.deepcopy(document()["DISTRIBUTED_STORAGE_CONFIG"])
    config["us"][1].update(arguments)
    return dict(config)
