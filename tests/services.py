"""The real services that tests run against, and how a test asks for them.

`./scripts/test` starts PostgreSQL, Redis and Ceph and tells tests where they are:

    ANTIPODE_TEST_POSTGRES   DSN of a role that may CREATE DATABASE
    ANTIPODE_TEST_REDIS      redis://host:port/0
    ANTIPODE_TEST_S3         JSON list of {"name", "endpoint", "access_key", "secret_key", "bucket", "ca"}

A test that asks for a service which no variable gives is skipped; with CI=true it fails. For a series of quick runs keep
the services up in another terminal: `python3 -m scripts.services up` prints the exports.

Fixtures (all in `tests/conftest.py`):

    database_uri: str                   DSN of a fresh, empty database, dropped after the test
    redis_uri: str                      the Redis; shared by all tests, so use names of your own
    s3_stores: dict[str, Store]         "us", "eu" (http), "us-tls" and "eu-tls" (https, the same stores)
    storage_path: str                   a fresh prefix such as "/test-1f3a9c", emptied in every store after the test
    repository: str                     a repository name that no other test uses
    cluster: Cluster                    two running nodes for the whole session, on Ceph: `cluster["us"].url`; tests share
                                        it, so each keeps to its own `repository` and stops nothing
    start_cluster: StartCluster         starts nodes for this test alone (`tests/cluster.py`):

        async def test_x(start_cluster: StartCluster) -> None:
            nodes = await start_cluster("us eu", "eu us", FEATURE_PROXY_STORAGE=True)
            nodes["us"].url                      "http://127.0.0.1:20731"; httpx is the client to use
            await nodes["us"].stop()             SIGTERM; fails the test on another exit code than 0 or a traceback in the log
            await nodes["us"].start()            again, with the same port and configuration
            nodes["us"].kill()                   SIGKILL, as a crash would
            nodes["us"].log                      everything it wrote so far

    faulty_store: FaultyStore           a proxy in front of a real store that breaks on command (`tests/faults.py`):

        async def test_x(faulty_store: MakeFaulty, start_cluster: StartCluster) -> None:
            us = await faulty_store("us")        a Store like s3_stores["us"], by way of the proxy
            nodes = await start_cluster("us eu", "eu us", stores={"us": us.store})
            us.break_("refuse")                  or "reset", "hang", "silent"; us.mend(); us.bytes_per_second = 100_000
"""

import asyncio
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from attrs import field, frozen

_DEADLINE = 120.0
"""Seconds, also for a database to be made or dropped on a busy machine."""


def required(variable: str) -> str:
    """Return what an environment variable says about a service; without it skip the test, in CI fail it."""
    value = os.environ.get(variable, "")
    if value:
        return value
    reason = f"{variable} is not set: run ./scripts/test, which starts the services"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@frozen
class Store:
    """An S3 bucket that tests may write to. `ca` is the path of the authority behind an https endpoint of our own."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    ca: str | None = None

    @property
    def hostname(self) -> str:
        return urlsplit(self.endpoint).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.endpoint)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_secure(self) -> bool:
        return urlsplit(self.endpoint).scheme == "https"

    def configuration(self, storage_path: str) -> list[Any]:
        """Return the value of this location in DISTRIBUTED_STORAGE_CONFIG, with Quay's argument names."""
        arguments = {
            "hostname": self.hostname,
            "port": self.port,
            "is_secure": self.is_secure,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "bucket_name": self.bucket,
            "storage_path": storage_path,
        }
        return ["RadosGWStorage", arguments | ({"ca_bundle": self.ca} if self.ca else {})]

    def client(self) -> Any:
        """Return a plain boto3 client, to look into the store behind the product's back."""
        # Here, because it takes half a second, which tests that never look into a store need not pay.
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            verify=self.ca,
            config=Config(
                connect_timeout=60,
                read_timeout=60,
                retries={"max_attempts": 1},
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of all objects whose key begins with `prefix` (a leading slash is ignored)."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix.lstrip("/"))
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def open_uploads(self, prefix: str) -> list[str]:
        """Return the keys of all multi-part uploads below `prefix` that were neither completed nor aborted."""
        pages = (
            self.client()
            .get_paginator("list_multipart_uploads")
            .paginate(Bucket=self.bucket, Prefix=prefix.lstrip("/"))
        )
        return [item["Key"] for page in pages for item in page.get("Uploads", [])]

    def empty(self, prefix: str) -> None:
        """Delete every object and open upload below `prefix`."""
        client, below = self.client(), prefix.lstrip("/")
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=below):
            for item in page.get("Uploads", []):
                client.abort_multipart_upload(Bucket=self.bucket, Key=item["Key"], UploadId=item["UploadId"])
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below):
            if keys := [{"Key": item["Key"]} for item in page.get("Contents", [])]:
                gone = client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})
                assert not gone.get("Errors"), gone["Errors"]


def all_stores() -> dict[str, Store]:
    """Return the stores that the environment gives, by name."""
    return {facts["name"]: Store(**facts) for facts in json.loads(required("ANTIPODE_TEST_S3"))}


@contextmanager
def fresh_database(administrator: str) -> Iterator[str]:
    """Create an empty database by way of the DSN `administrator`, yield its DSN, and drop it with whoever is connected."""
    name = f"antipode_test_{secrets.token_hex(6)}"
    execute(administrator, f"CREATE DATABASE {name}")
    try:
        yield urlunsplit(urlsplit(administrator)._replace(path=f"/{name}"))
    finally:
        execute(administrator, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def fresh_storage_path() -> str:
    """Return a key prefix that nobody has used."""
    return f"/test-{secrets.token_hex(6)}"


def repository_root() -> Path:
    """Return the root of the working copy."""
    return Path(__file__).resolve().parent.parent


def execute(dsn: str, statement: str) -> None:
    """Run one statement outside a transaction. Synchronous: fixtures of any scope call it, where no loop runs."""

    async def work() -> None:
        connection = await asyncpg.connect(dsn, timeout=_DEADLINE)
        try:
            await connection.execute(statement, timeout=_DEADLINE)
        finally:
            await connection.close(timeout=_DEADLINE)

    asyncio.run(work())


def fetch_rows(dsn: str, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Run one query behind the product's back and return its rows. Synchronous, as `execute`."""

    async def work() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(dsn, timeout=_DEADLINE)
        try:
            return [tuple(row) for row in await connection.fetch(statement, *arguments, timeout=_DEADLINE)]
        finally:
            await connection.close(timeout=_DEADLINE)

    return asyncio.run(work())
