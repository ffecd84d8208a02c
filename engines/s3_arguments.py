"""Quay's storage class names and their arguments, translated to one frozen value that the S3 engine understands. Pure.

Source: the constructors in Quay's storage/cloud.py. Arguments of this registry's own: public_endpoint, redirect, verify_tls,
ca_bundle, connect_timeout, read_timeout, write_timeout, maximum_connections.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from attrs import field, frozen

from .contract import Limits
from .presign import Addressing

T = TypeVar("T")

COMMON = frozenset({
    "public_endpoint", "redirect", "verify_tls", "ca_bundle",
    "connect_timeout", "read_timeout", "write_timeout", "maximum_connections",
})  # fmt: skip
"""This registry's own arguments, known to every class of the S3 family."""

SECRETS = frozenset({
    "s3_access_key", "s3_secret_key", "access_key", "secret_key",
    "aws_session_token", "sts_user_access_key", "sts_user_secret_key",
})  # fmt: skip
"""Arguments whose values no message shows."""

_GATEWAY = frozenset({
    "hostname", "is_secure", "storage_path", "access_key", "secret_key", "bucket_name", "region_name", "port",
    "signature_version", "minimum_chunk_size_mb", "maximum_chunk_size_mb", "server_side_assembly",
})  # fmt: skip

KNOWN: Mapping[str, frozenset[str]] = {
    "S3Storage": frozenset({
        "storage_path", "s3_bucket", "s3_access_key", "s3_secret_key", "s3_region", "host", "port", "endpoint_url",
        "aws_session_token", "signature_version", "maximum_chunk_size_gb", "minimum_chunk_size_mb",
    }),
    "STSS3Storage": frozenset({
        "storage_path", "s3_bucket", "sts_role_arn", "sts_user_access_key", "sts_user_secret_key", "s3_region",
        "endpoint_url", "signature_version", "maximum_chunk_size_gb", "minimum_chunk_size_mb", "sts_endpoint_url",
    }),
    "RadosGWStorage": _GATEWAY,
    "RHOCSStorage": _GATEWAY,
    "IBMCloudStorage": _GATEWAY - {"server_side_assembly"},
    "GoogleCloudStorage": frozenset({
        "storage_path", "access_key", "secret_key", "bucket_name", "region_name", "boto_timeout",
        "signature_version", "minimum_chunk_size_mb",
    }),
}  # fmt: skip
"""Every class name of the S3 family with the arguments it takes besides COMMON."""

_WITHOUT_EFFECT: Mapping[str, str] = {
    "maximum_chunk_size_gb": "PART_SIZE",
    "maximum_chunk_size_mb": "PART_SIZE",
    "minimum_chunk_size_mb": "PART_SIZE",
    "server_side_assembly": "nothing: a finished upload is never copied",
    "boto_timeout": "connect_timeout and read_timeout",
}
"""Quay's arguments that change nothing here, and what decides instead."""


@frozen
class StaticKeys:
    """Credentials that stand in the configuration."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@frozen
class AmbientKeys:
    """Credentials that the process finds around it: environment, profile, container or instance role."""


@frozen
class RoleKeys:
    """Temporary credentials from the token service for a role: by a user's keys, or by web identity where `user` is None."""

    role_arn: str
    user: StaticKeys | None
    endpoint: str | None = None
    """The token service, where it isn't Amazon's."""


@frozen
class S3Arguments:
    """Everything the S3 engine needs to know. Endpoints are `scheme://host[:port]` without a path."""

    kind: str
    endpoint: str
    bucket: str
    prefix: str
    """What every key starts with: "" or "some/path/"."""
    region: str
    addressing: Addressing
    keys: StaticKeys | AmbientKeys | RoleKeys
    public_endpoint: str | None = None
    """Where presigned URLs lead, if clients reach the store under another name than the nodes."""
    redirect: bool = True
    verify_tls: bool = True
    ca_bundle: str | None = None
    encrypt: bool = False
    """Ask for server-side encryption (AES256) with each object, as Quay does on Amazon: old bucket policies insist on it."""
    limits: Limits = field(factory=Limits)
    maximum_connections: int = 256
    warnings: tuple[str, ...] = ()


class ArgumentErrors(ValueError):
    """The arguments of an engine cannot be used. `errors` has one message per problem: argument, value, what would be right."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(self.errors))


class Arguments:
    """Takes arguments out of a mapping by type, and collects every error instead of stopping at the first."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self._given = given
        self.errors: list[str] = []

    def text(self, name: str, *, required: bool = False, right: str = "a text") -> str | None:
        """Return a text; None where it is absent, null or empty."""
        value = self._given.get(name)
        if value is None or value == "":
            if required:
                self.errors.append(f"{name}: missing; give {right}")
            return None
        if not isinstance(value, str):
            self.wrong(name, right)
            return None
        return value

    def flag(self, name: str, *, default: bool | None) -> bool:
        """Return true or false; a missing one is an error where `default` is None."""
        value = self._given.get(name)
        if value is None:
            if default is None:
                self.errors.append(f"{name}: missing; give true or false")
            return bool(default)
        if not isinstance(value, bool):
            self.wrong(name, "true or false")
        return value is True

    def whole(self, name: str, lowest: int, highest: int) -> int | None:
        """Return a whole number within bounds, None where it is absent. YAML's quoted numbers are taken, too."""
        return self._number(name, int, lowest, highest, f"a whole number from {lowest} to {highest}")

    def seconds(self, name: str, default: float) -> float:
        """Return a duration in seconds, above zero and at most an hour."""
        value = self._number(name, float, 0.001, 3600.0, "seconds, more than 0 and at most 3600")
        return default if value is None else value

    def origin(self, name: str) -> str | None:
        """Return a URL's scheme and host with its port, None where it is absent."""
        right = "a URL like https://s3.example.com without path, query and user"
        value = self.text(name, right=right)
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            self.wrong(name, right)
            return None
        plain = parts.path in ("", "/") and not parts.query and not parts.fragment and parts.username is None
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
            # A URL with a user part holds a password.
            self.wrong(name, right, hide=parts.username is not None)
            return None
        return _origin(parts.hostname, port, secure=parts.scheme == "https")

    def wrong(self, name: str, right: str, *, hide: bool = False) -> None:
        """Note that an argument's value cannot be used, and what would be right."""
        shown = "its value" if hide or name in SECRETS else repr(self._given.get(name))
        self.errors.append(f"{name}: {shown} cannot be used; give {right}")

    def _number(self, name: str, kind: Callable[[str | float], T], lowest: T, highest: T, right: str) -> T | None:
        value = self._given.get(name)
        if value is None or value == "":
            return None
        number: T | None = None
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = kind(value)
            except (ValueError, OverflowError):
                number = None
        # The comparison also refuses NaN; a fraction where a whole number is due is not rounded in silence.
        if number is None or not lowest <= number <= highest or (isinstance(value, float) and number != value):  # type: ignore[operator]  # T is int or float
            self.wrong(name, right)
            return None
        return number


def parse_s3(kind: str, given: Mapping[str, object]) -> S3Arguments:
    """Translate the arguments of one of the classes in KNOWN.

    Raises ArgumentErrors with every problem at once: an unknown argument, a missing or unusable one, two that contradict.
    """
    arguments = Arguments(given)
    known = KNOWN[kind] | COMMON
    arguments.errors += [
        f"{name}: {kind} has no such argument; it takes {', '.join(sorted(known))}"
        for name in given
        if name not in known
    ]
    signature = arguments.text("signature_version", right='"s3v4" or nothing')
    if signature not in (None, "s3v4", "v4"):
        arguments.errors.append(
            f'signature_version: {signature!r} cannot be used; give "s3v4" or nothing: '
            "stores refuse version 2 and this registry does not sign with it"
        )
    parse = _parse_gateway if "bucket_name" in known else _parse_amazon
    endpoint, region, bucket, keys = parse(kind, arguments)
    amazon = endpoint.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    # A bucket with dots doesn't match the wildcard of Amazon's certificate.
    addressing: Addressing = "virtual" if amazon and "." not in bucket else "path"
    verify, bundle = arguments.flag("verify_tls", default=True), arguments.text("ca_bundle", right="a PEM file's path")
    if bundle and not verify:
        arguments.errors.append(f"ca_bundle: {bundle!r} has no use with verify_tls: false; leave one of them out")
    defaults = Limits()
    result = S3Arguments(
        kind=kind,
        endpoint=endpoint,
        bucket=bucket,
        prefix=_prefix(arguments),
        region=region,
        addressing=addressing,
        keys=keys,
        public_endpoint=arguments.origin("public_endpoint"),
        redirect=arguments.flag("redirect", default=True),
        verify_tls=verify,
        ca_bundle=bundle,
        encrypt=amazon and "s3_bucket" in known,
        limits=Limits(
            connect=arguments.seconds("connect_timeout", defaults.connect),
            read=arguments.seconds("read_timeout", defaults.read),
            write=arguments.seconds("write_timeout", defaults.write),
        ),
        maximum_connections=arguments.whole("maximum_connections", 1, 10_000) or 256,
        warnings=tuple(
            f"{name} has no effect here; what decides is {instead}"
            for name, instead in _WITHOUT_EFFECT.items()
            if given.get(name) is not None and name in known
        ),
    )
    if arguments.errors:
        raise ArgumentErrors(arguments.errors)
    return result


_Parsed = tuple[str, str, str, StaticKeys | AmbientKeys | RoleKeys]


def _parse_gateway(kind: str, arguments: Arguments) -> _Parsed:
    """Take endpoint, region, bucket and keys of the classes that name a host and static keys."""
    if kind == "GoogleCloudStorage":
        endpoint, region = "https://storage.googleapis.com", "auto"
    else:
        secure = arguments.flag("is_secure", default=None)
        endpoint = _host(arguments, "hostname", secure=secure, required=True) or ""
        region = "us-east-1"
    region = arguments.text("region_name") or region
    bucket = arguments.text("bucket_name", required=True, right="the bucket's name") or ""
    if ":" in bucket:
        arguments.wrong("bucket_name", "the bucket's name alone: of which tenant it is, the access key says")
    access = arguments.text("access_key", required=True, right="the access key")
    secret = arguments.text("secret_key", required=True, right="the secret key")
    return endpoint, region, bucket, StaticKeys(access or "", secret or "")


def _parse_amazon(kind: str, arguments: Arguments) -> _Parsed:
    """Take endpoint, region, bucket and keys of the classes that mean Amazon unless they name another endpoint."""
    bucket = arguments.text("s3_bucket", required=True, right="the bucket's name") or ""
    region = arguments.text("s3_region", right="a region's name, like eu-central-1")
    url = arguments.origin("endpoint_url")
    host = _host(arguments, "host", secure=True) if kind == "S3Storage" else None
    other = url or host
    if region and other and not other.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        name = "endpoint_url" if url else "host"
        arguments.errors.append(
            f"{name}: {other!r} contradicts s3_region: {region!r}, with which Quay goes to Amazon; leave one of them out, or "
            "use RadosGWStorage, which takes hostname and region_name"
        )
    if region:
        endpoint = f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
    elif other:
        endpoint, region = other, "us-east-1"
        words = other.removeprefix("https://").split(".")
        if other.endswith(".amazonaws.com") and len(words) == 4 and words[0] == "s3":
            region = words[1]
    else:
        endpoint, region = "https://s3.us-east-1.amazonaws.com", "us-east-1"
    keys = _role_keys(arguments) if kind == "STSS3Storage" else _amazon_keys(arguments)
    return endpoint, region, bucket, keys


def _amazon_keys(arguments: Arguments) -> StaticKeys | AmbientKeys:
    keys = _pair(arguments, "s3_access_key", "s3_secret_key")
    token = arguments.text("aws_session_token")
    if keys is None:
        if token is not None:
            arguments.errors.append("aws_session_token: needs s3_access_key and s3_secret_key beside it")
        return AmbientKeys()
    return StaticKeys(keys.access_key, keys.secret_key, token)


def _role_keys(arguments: Arguments) -> RoleKeys:
    role = arguments.text("sts_role_arn", right="the ARN of the role to take")
    user = _pair(arguments, "sts_user_access_key", "sts_user_secret_key")
    if role is None and user is not None:
        arguments.errors.append("sts_role_arn: missing; give the ARN of the role to take")
    # Without keys the role may also stand in AWS_ROLE_ARN, beside the web identity token's file.
    return RoleKeys(role or "", user, arguments.origin("sts_endpoint_url"))


def _pair(arguments: Arguments, access_name: str, secret_name: str) -> StaticKeys | None:
    access, secret = arguments.text(access_name), arguments.text(secret_name)
    if access and secret:
        return StaticKeys(access, secret)
    if access or secret:
        missing, there = (secret_name, access_name) if access else (access_name, secret_name)
        arguments.errors.append(f"{missing}: missing beside {there}; give both, or neither")
    return None


def _host(arguments: Arguments, name: str, *, secure: bool, required: bool = False) -> str | None:
    right = "a host name or address without scheme, path and port"
    host = arguments.text(name, required=required, right=right)
    port = arguments.whole("port", 1, 65535)
    if host is None:
        return None
    bare = host.removeprefix("[").removesuffix("]")
    if any(sign in bare for sign in "/@?# ") or (":" in bare and bare == host and bare.count(":") == 1):
        arguments.wrong(name, right)
        return None
    return _origin(bare.lower(), port, secure=secure)


def _origin(host: str, port: int | None, *, secure: bool) -> str:
    """Return scheme and host as clients send them: no port that is the scheme's own, brackets around an IPv6 address."""
    host = f"[{host}]" if ":" in host else host
    usual = 443 if secure else 80
    return f"{'https' if secure else 'http'}://{host}" + (f":{port}" if port not in (None, usual) else "")


def _prefix(arguments: Arguments) -> str:
    path = arguments.text("storage_path", required=True, right="a path like /registry, or / for the bucket's top")
    words = (path or "").strip("/")
    return f"{words}/" if words else ""
