"""The certificate of the node's own listener: made into a TLS context, and made anew when its files change.

Ciphers: what Mozilla's "intermediate" profile has for TLS 1.2 (forward secrecy and authenticated encryption only); those of
TLS 1.3 are OpenSSL's own, AES-128-GCM first. HTTP/1.1 only: over HTTP/2 one stalled upload would stall its siblings.
"""

import ssl
import time
from collections.abc import Callable
from pathlib import Path

import structlog
import trio
from attrs import define, field, frozen
from cryptography.x509 import load_pem_x509_certificates

from engines.tls_suites import CannotChoose, choose_suites, prefer_fast
from node.config.settings import TlsSettings

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.tls")

LOOK_EVERY = 5.0
"""Seconds between two looks at the files."""
_LOOK_SECONDS = 10.0
"""For one look: a file may be on a network."""

OVERDUE = 0.25
"""Share of a certificate's life: with less left its renewal is overdue. Most renew with a third left."""
_REMIND_EVERY = 86400.0

_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}

Stamp = tuple[tuple[int, int, int], ...]


class BadCertificate(Exception):
    """The certificate, its key or the ciphers cannot be used, and why, without secrets. `path`: the file at fault, "" if none."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


def make_context(settings: TlsSettings) -> ssl.SSLContext:
    """Return the context for the listener. Reads the two files. Raises BadCertificate."""
    certificate, key = _read(settings.certificate), _read(settings.key)
    if b"-----BEGIN CERTIFICATE-----" not in certificate:
        raise BadCertificate(str(settings.certificate), "there is no certificate in it, in PEM")
    if b"PRIVATE KEY-----" not in key:
        raise BadCertificate(str(settings.key), "there is no private key in it, in PEM")
    if b"ENCRYPTED" in key:
        raise BadCertificate(str(settings.key), "the key has a passphrase, and nobody is there to type it: take it off")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    versions = [_VERSIONS[name] for name in settings.protocols]
    context.minimum_version, context.maximum_version = min(versions), max(versions)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.set_ciphers(settings.ciphers)
    except ssl.SSLError:
        raise BadCertificate("", "OpenSSL knows none of these ciphers") from None
    try:
        if settings.suites:
            choose_suites(context, settings.suites)
        else:
            prefer_fast(context)
    except CannotChoose as error:
        raise BadCertificate("", str(error)) from None
    try:
        # Without a password of our own OpenSSL would ask at the terminal.
        context.load_cert_chain(settings.certificate, settings.key, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate(str(settings.key), "the key is not that of the certificate") from None
        reason = (error.reason or "something is wrong with it").replace("_", " ").lower()
        raise BadCertificate(str(settings.certificate), f"OpenSSL cannot use it with its key: {reason}") from None
    except OSError as error:
        raise BadCertificate(str(settings.certificate), error.strerror or "it cannot be read") from None
    return context


@frozen
class Life:
    """From when to when a certificate is good, in POSIX seconds."""

    begins: float
    ends: float

    def remark(self, now: float) -> str | None:
        """Return what the operator must hear about it, None while all is well. Pure."""
        if now >= self.ends:
            return "the certificate has expired: clients refuse this node"
        if now < self.begins:
            return "the certificate is not good yet: clients refuse this node"
        if self.ends - now < OVERDUE * (self.ends - self.begins):
            return f"the certificate ends in {(self.ends - now) / 86400:.1f} days and has not been renewed"
        return None


def life_of(path: Path) -> Life:
    """Return the life of the first certificate in a PEM file. Raises BadCertificate."""
    try:
        first = load_pem_x509_certificates(_read(path))[0]
    except ValueError:
        raise BadCertificate(str(path), "there is no certificate in it, in PEM") from None
    return Life(first.not_valid_before_utc.timestamp(), first.not_valid_after_utc.timestamp())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadCertificate(str(path), error.strerror or "it cannot be read") from None


@define(eq=False)
class Certificates:
    """The listener's context: the newest that its files gave. A connection keeps the one it began with."""

    settings: TlsSettings
    context: ssl.SSLContext = field(init=False)
    life: Life = field(init=False)
    _clock: Callable[[], float] = field(default=time.time, alias="clock")
    """POSIX seconds."""
    _stamp: Stamp | None = field(default=None, init=False)
    _reminded: float = field(default=float("-inf"), init=False)

    def __attrs_post_init__(self) -> None:
        self._stamp = self._look()
        self._load()

    def current(self) -> ssl.SSLContext:
        """Return what the next connection shakes hands with."""
        return self.context

    def refresh(self) -> bool:
        """Make the context anew if the files have changed; return whether it was made. Blocks.

        What cannot be used changes nothing, and is logged once.
        """
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._load()
        except BadCertificate as error:
            _log.error("the new certificate cannot be used: the old one stays", path=error.path, reason=error.reason)
            return False
        _log.warning("certificate reloaded", path=str(self.settings.certificate))
        return True

    async def look(self) -> None:
        """Do as `refresh` without blocking; give up after a while."""
        with trio.move_on_after(_LOOK_SECONDS) as scope:
            await trio.to_thread.run_sync(self.refresh, abandon_on_cancel=True)
        if scope.cancelled_caught:
            _log.warning("the certificate's files cannot be looked at", seconds=_LOOK_SECONDS)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at the files every few seconds, for ever."""
        task_status.started()
        while True:
            self._remind()
            await trio.sleep(LOOK_EVERY)
            await self.look()

    def _load(self) -> None:
        """Take what the files have, or nothing of it. Raises BadCertificate."""
        context, life = make_context(self.settings), life_of(self.settings.certificate)
        self.context, self.life = context, life
        self._reminded = float("-inf")

    def _remind(self) -> None:
        """Say once a day that renewal is overdue."""
        now = self._clock()
        remark = self.life.remark(now)
        if remark is not None and now - self._reminded >= _REMIND_EVERY:
            self._reminded = now
            _log.warning(remark, path=str(self.settings.certificate))

    def _look(self) -> Stamp | None:
        """Return what changes when a file does, None where one is not there."""
        try:
            found = [path.stat() for path in (self.settings.certificate, self.settings.key)]
        except OSError:
            return None
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)
