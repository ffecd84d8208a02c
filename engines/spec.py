"""From a class name and its arguments, as the configuration has them, to something that can be opened: `EngineSpec`."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import field, frozen

from .contract import Engine, Limits
from .local import LocalArguments, open_local
from .readable import why_unreadable
from .s3_arguments import KNOWN, AmbientKeys, ArgumentErrors, Arguments, RoleKeys, S3Arguments, parse_s3

LOCAL = "LocalStorage"

_UNSUPPORTED: Mapping[str, str] = {
    "AzureStorage": "Azure Blob Storage is not supported; put an S3 store in its place",
    "SwiftStorage": "the Swift protocol is not supported; Ceph and Swift speak S3, too: use RadosGWStorage with S3 keys",
    "CloudFrontedS3Storage": "CloudFront is not supported; use S3Storage, with public_endpoint for a name of your own",
    "CloudFlareStorage": "CloudFlare's signed URLs are not supported; use S3Storage",
    "AkamaiS3Storage": "Akamai's tokens are not supported; use S3Storage",
    "MultiCDNStorage": "content delivery networks are not supported; configure the store behind them, S3Storage or another",
    "FakeStorage": "it is Quay's own test double; use LocalStorage",
}
"""Quay's other classes, and what to do instead."""


@frozen
class EngineSpec:
    """A store as the configuration describes it: checked, not yet opened. Made by `parse_engine`."""

    arguments: S3Arguments | LocalArguments
    redirect: bool = True
    """Whether the configuration allows sending clients to this store (the engine must presign, too)."""
    warnings: tuple[str, ...] = ()
    """Arguments that have no effect here, one line each."""
    wrap: Callable[[Engine], Engine] | None = field(default=None, eq=False, repr=False)
    """Put around the engine when it is opened; tests place faults with it."""

    @property
    def kind(self) -> str:
        """The class name that the configuration used."""
        return self.arguments.kind

    @property
    def shared(self) -> bool:
        """Whether other hosts can reach this store."""
        return isinstance(self.arguments, S3Arguments)

    @property
    def connections(self) -> int | None:
        """How many calls a node may have under way there at once (`maximum_connections`); None where nothing bounds them."""
        return self.arguments.maximum_connections if isinstance(self.arguments, S3Arguments) else None

    @property
    def place(self) -> str:
        """Where all its keys are, with a slash at the end: no other store may be below it, or the same."""
        if isinstance(self.arguments, LocalArguments):
            return f"{self.arguments.storage_path}".rstrip("/") + "/"
        return f"{self.arguments.endpoint}/{self.arguments.bucket}/{self.arguments.prefix}"

    def same_account(self, other: "EngineSpec") -> bool:
        """Whether two stores are reached with the same credentials, or none."""
        mine, theirs = self.arguments, other.arguments
        if isinstance(mine, S3Arguments) and isinstance(theirs, S3Arguments):
            return mine.keys == theirs.keys
        return True

    def describe(self) -> str:
        """Return one line for people, without secrets."""
        if isinstance(self.arguments, LocalArguments):
            return f"{self.kind} {self.arguments.storage_path}"
        given = self.arguments
        who = {AmbientKeys: "credentials of the environment", RoleKeys: "credentials of a role"}.get(type(given.keys))
        parts = [
            f"{self.kind} {self.place}",
            f"region {given.region}",
            who,
            f"presigned as {given.public_endpoint}" if given.public_endpoint else None,
            None if given.verify_tls else "TLS NOT VERIFIED",
            None if self.redirect else "no redirects",
        ]
        return ", ".join(part for part in parts if part)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Engine]:
        """Open the engine, below `open_bridge`. No network I/O: a dead store does not stop a node from starting."""
        if isinstance(self.arguments, LocalArguments):
            async with open_local(self.arguments) as local:
                yield self.wrap(local) if self.wrap else local
            return
        # The client library takes most of a second to import; checking a configuration or using a folder needs none of it.
        from .s3 import open_s3

        async with open_s3(self.arguments) as engine:
            yield self.wrap(engine) if self.wrap else engine


def parse_engine(class_name: str, arguments: Mapping[str, object]) -> EngineSpec:
    """Check and translate one entry of DISTRIBUTED_STORAGE_CONFIG: Quay's class name and its arguments.

    Raises ArgumentErrors with every problem at once, each naming the argument, what was found (never a secret) and what
    would be right. Reads no file but to see that `ca_bundle` can be read.
    """
    if class_name == LOCAL:
        return _parse_local(arguments)
    if class_name not in KNOWN:
        known = ", ".join(sorted([*KNOWN, LOCAL]))
        reason = _UNSUPPORTED.get(class_name, "there is no such storage class")
        raise ArgumentErrors([f"{class_name}: {reason} (supported: {known})"])
    parsed = parse_s3(class_name, arguments)
    if parsed.ca_bundle is not None and (refused := why_unreadable(parsed.ca_bundle)) is not None:
        raise ArgumentErrors([f"ca_bundle: {parsed.ca_bundle!r}: {refused}; give the path of a PEM file"])
    return EngineSpec(parsed, parsed.redirect, parsed.warnings)


def _parse_local(given: Mapping[str, object]) -> EngineSpec:
    arguments = Arguments(given)
    known = ("storage_path", "redirect", "read_timeout", "write_timeout")
    arguments.errors += [
        f"{name}: {LOCAL} has no such argument; it takes {', '.join(known)}" for name in given if name not in known
    ]
    right = "a folder's absolute path other than /"
    text = arguments.text("storage_path", required=True, right=right)
    path = Path(text or "/")
    if text is not None and (not path.is_absolute() or path == Path("/") or ".." in path.parts):
        arguments.wrong("storage_path", right)
    defaults = Limits()
    limits = Limits(
        read=arguments.seconds("read_timeout", defaults.read), write=arguments.seconds("write_timeout", defaults.write)
    )
    redirect = arguments.flag("redirect", default=True)
    if arguments.errors:
        raise ArgumentErrors(arguments.errors)
    return EngineSpec(LocalArguments(LOCAL, path, limits), redirect)
