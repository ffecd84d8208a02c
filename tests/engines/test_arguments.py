"""Quay's class names and arguments: what each means, and what is said about the wrong ones."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from engines import ArgumentErrors, EngineSpec, parse_engine
from engines.s3_arguments import KNOWN, AmbientKeys, RoleKeys, S3Arguments, StaticKeys

GATEWAY: dict[str, object] = {
    "hostname": "s3.example.com", "is_secure": True, "storage_path": "/registry/one",
    "access_key": "A", "secret_key": "hidden", "bucket_name": "blobs",
}  # fmt: skip
AMAZON: dict[str, object] = {"s3_bucket": "blobs", "storage_path": "/", "s3_region": "eu-central-1"}


def s3(spec: EngineSpec) -> S3Arguments:
    assert isinstance(spec.arguments, S3Arguments)
    return spec.arguments


def errors(class_name: str, arguments: Mapping[str, object]) -> tuple[str, ...]:
    with pytest.raises(ArgumentErrors) as caught:
        parse_engine(class_name, arguments)
    return caught.value.errors


@pytest.mark.parametrize("class_name", ["RadosGWStorage", "RHOCSStorage", "IBMCloudStorage"])
def test_gateways(class_name: str) -> None:
    """The classes that name a host mean that host, path-style, with static keys."""
    spec = parse_engine(class_name, GATEWAY | {"port": 9000})
    given = s3(spec)
    assert (given.endpoint, given.bucket, given.prefix) == ("https://s3.example.com:9000", "blobs", "registry/one/")
    assert (given.region, given.addressing, given.encrypt) == ("us-east-1", "path", False)
    assert given.keys == StaticKeys("A", "hidden")
    assert (spec.kind, spec.shared, spec.redirect, spec.warnings) == (class_name, True, True, ())


def test_google() -> None:
    """Google's class needs no host."""
    given = s3(
        parse_engine(
            "GoogleCloudStorage", {k: GATEWAY[k] for k in ("storage_path", "access_key", "secret_key", "bucket_name")}
        )
    )
    assert (given.endpoint, given.region) == ("https://storage.googleapis.com", "auto")


@pytest.mark.parametrize(
    ("arguments", "endpoint", "region", "addressing"),
    [
        ({"s3_region": "eu-central-1"}, "https://s3.eu-central-1.amazonaws.com", "eu-central-1", "virtual"),
        ({"s3_region": "cn-north-1"}, "https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1", "virtual"),
        ({}, "https://s3.us-east-1.amazonaws.com", "us-east-1", "virtual"),
        ({"host": "s3.a.amazonaws.com", "s3_region": "a"}, "https://s3.a.amazonaws.com", "a", "virtual"),
        ({"host": "s3.us-east-2.amazonaws.com"}, "https://s3.us-east-2.amazonaws.com", "us-east-2", "virtual"),
        ({"host": "minio.local", "port": 9000}, "https://minio.local:9000", "us-east-1", "path"),
        ({"endpoint_url": "http://minio.local:80/"}, "http://minio.local", "us-east-1", "path"),
        ({"s3_bucket": "with.dots"}, "https://s3.us-east-1.amazonaws.com", "us-east-1", "path"),
    ],
)  # fmt: skip
def test_amazon_endpoints(arguments: dict[str, object], endpoint: str, region: str, addressing: str) -> None:
    """A region goes to Amazon; a host or URL goes there."""
    given = s3(parse_engine("S3Storage", {"s3_bucket": "blobs", "storage_path": "/"} | arguments))
    assert (given.endpoint, given.region, given.addressing) == (endpoint, region, addressing)


def test_keys() -> None:
    """Keys are static, of the environment, or of a role."""
    pair = {"s3_access_key": "A", "s3_secret_key": "B", "aws_session_token": "T"}
    assert s3(parse_engine("S3Storage", AMAZON | pair)).keys == StaticKeys("A", "B", "T")
    assert s3(parse_engine("S3Storage", AMAZON)).keys == AmbientKeys()
    user = {"sts_role_arn": "arn:x", "sts_user_access_key": "A", "sts_user_secret_key": "B"}
    assert s3(parse_engine("STSS3Storage", AMAZON | user)).keys == RoleKeys("arn:x", StaticKeys("A", "B"))
    web = {"sts_role_arn": "arn:x", "sts_user_access_key": "", "sts_user_secret_key": ""}
    assert s3(parse_engine("STSS3Storage", AMAZON | web)).keys == RoleKeys("arn:x", None)


def test_own_arguments(tmp_path: Path) -> None:
    """This registry's own arguments are known to every class of the family."""
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    own = {
        "public_endpoint": "https://blobs.example.com", "redirect": False, "ca_bundle": str(bundle),
        "connect_timeout": 1, "read_timeout": 2.5, "write_timeout": "9", "maximum_connections": 7,
    }  # fmt: skip
    spec = parse_engine("RadosGWStorage", GATEWAY | own)
    given = s3(spec)
    assert (given.public_endpoint, given.ca_bundle, given.maximum_connections) == (
        "https://blobs.example.com",
        str(bundle),
        7,
    )
    assert (given.limits.connect, given.limits.read, given.limits.write) == (1, 2.5, 9)
    assert not spec.redirect


def test_arguments_without_effect_are_named() -> None:
    """What Quay knows and this registry decides otherwise is accepted, and said in one line."""
    spec = parse_engine("RadosGWStorage", GATEWAY | {"maximum_chunk_size_mb": 100, "server_side_assembly": False})
    assert [line.split()[0] for line in spec.warnings] == ["maximum_chunk_size_mb", "server_side_assembly"]


def test_all_errors_at_once() -> None:
    """Every problem is named with the argument, what was found and what would be right; no secret is shown."""
    found = errors(
        "RadosGWStorage",
        {
            "hostname": "http://x/y", "is_secure": "yes", "access_key": "A", "secret_key": 12345, "bucket_name": "",
            "port": 99999, "signature_version": "s3", "hots": 1, "read_timeout": -1, "redirect": "no",
            "public_endpoint": "https://user:pass@example.com",
        },
    )  # fmt: skip
    names = sorted(line.split(":")[0] for line in found)
    assert names == sorted(
        ["hostname", "is_secure", "secret_key", "bucket_name", "port", "signature_version", "hots", "read_timeout",
         "redirect", "public_endpoint", "storage_path"]
    )  # fmt: skip
    text = " ".join(found)
    assert "12345" not in text
    assert "pass@" not in text
    assert "'http://x/y'" in text
    assert "1 to 65535" in text


@pytest.mark.parametrize(
    ("class_name", "arguments", "names"),
    [
        ("S3Storage", {"s3_access_key": "A"}, ["s3_secret_key"]),
        ("S3Storage", {"aws_session_token": "T"}, ["aws_session_token"]),
        ("S3Storage", {"endpoint_url": "https://minio.local"}, ["endpoint_url"]),
        ("S3Storage", {"endpoint_url": "ftp://x"}, ["endpoint_url"]),
        ("S3Storage", {"verify_tls": False, "ca_bundle": "x"}, ["ca_bundle"]),
        ("S3Storage", {"ca_bundle": "/no/such/file"}, ["ca_bundle"]),
        ("STSS3Storage", {"sts_user_access_key": "A", "sts_user_secret_key": "B"}, ["sts_role_arn"]),
        ("S3Storage", {"maximum_connections": 1.5}, ["maximum_connections"]),
        ("S3Storage", {"read_timeout": float("nan")}, ["read_timeout"]),
        ("S3Storage", {"read_timeout": 10**400, "connect_timeout": "5s"}, ["connect_timeout", "read_timeout"]),
        ("S3Storage", {"port": float("inf")}, ["port"]),
    ],
)
def test_contradictions(class_name: str, arguments: dict[str, object], names: list[str]) -> None:
    """Arguments that don't go together are refused, by name."""
    assert [line.split(":")[0] for line in errors(class_name, AMAZON | arguments)] == names


@pytest.mark.parametrize(
    "class_name",
    [
        "AzureStorage",
        "SwiftStorage",
        "CloudFrontedS3Storage",
        "CloudFlareStorage",
        "AkamaiS3Storage",
        "MultiCDNStorage",
    ],
)
def test_unsupported_classes(class_name: str) -> None:
    """Quay's other classes are named as such, with what to use instead and all that is supported."""
    (line,) = errors(class_name, {})
    assert line.startswith(f"{class_name}: ")
    assert "no such storage class" not in line
    assert all(known in line for known in [*KNOWN, "LocalStorage"])


def test_unknown_class() -> None:
    """A name that nobody knows is answered with those that are known."""
    (line,) = errors("S4Storage", {})
    assert "no such storage class" in line
    assert "S3Storage" in line


def test_local() -> None:
    """A local folder is not shared with other hosts, and its path has to be absolute."""
    spec = parse_engine("LocalStorage", {"storage_path": "/var/lib/blobs"})
    assert not spec.shared
    assert spec.describe() == "LocalStorage /var/lib/blobs"
    for path in ("relative", "/", "/a/../../etc", None):
        assert errors("LocalStorage", {"storage_path": path})[0].startswith("storage_path")
    assert errors("LocalStorage", {"storage_path": "/x", "bucket": "y"})[0].startswith("bucket")


def test_no_secret_is_printed() -> None:
    """A specification may be printed and described."""
    spec = parse_engine("RadosGWStorage", GATEWAY)
    assert "hidden" not in repr(spec)
    assert "hidden" not in spec.describe()
    assert spec.describe() == "RadosGWStorage https://s3.example.com/blobs/registry/one/, region us-east-1"
