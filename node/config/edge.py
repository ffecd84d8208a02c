"""Reads how clients reach the node: its own certificate, or who ends TLS in front of it, and which proxies are believed."""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

from attrs import evolve

from engines.readable import why_unreadable
from engines.tls_suites import CannotChoose, choose_suites
from node.config.settings import EdgeSettings, TlsSettings
from node.config.values import Findings, Hidden, Unfit, read_flag, read_text, show
from node.tls import BadCertificate, make_context

CERTIFICATE, KEY = "SSL_CERTIFICATE", "SSL_CERTIFICATE_KEY"
_QUAYS = ("ssl.cert", "ssl.key")
"""Quay looks for its certificate and key under these names beside its configuration file."""

_SPOKEN = ("TLSv1.2", "TLSv1.3")
_REFUSED = ("SSLv2", "SSLv3", "TLSv1", "TLSv1.1")


def read_edge(
    document: Mapping[str, object], folder: Path | None, scheme: str | None, findings: Findings
) -> EdgeSettings:
    """Return how the listener speaks; errors go to `findings`.

    `folder` is the configuration file's, None without a file. `scheme` is what clients speak, None where that is an error already.

    Plain HTTP needs PREFERRED_URL_SCHEME: http or EXTERNAL_TLS_TERMINATION: true; otherwise there must be a certificate.
    The certificate is read here once, so that a broken one is an error of the configuration.
    """
    trusted = _read_networks(document.get("TRUSTED_PROXY_CIDR"), findings)
    protocol = _flag(document, "FEATURE_PROXY_PROTOCOL", findings)
    if protocol and not trusted:
        findings.wrong(
            "FEATURE_PROXY_PROTOCOL",
            "true",
            "TRUSTED_PROXY_CIDR must list the networks of the proxies whose PROXY headers are believed",
        )
    edge = EdgeSettings(None, trusted, protocol)
    external = _flag(document, "EXTERNAL_TLS_TERMINATION", findings)
    if scheme != "https" or external:
        why = "EXTERNAL_TLS_TERMINATION: true" if external else "PREFERRED_URL_SCHEME: http"
        named = [name for name in (CERTIFICATE, KEY) if document.get(name) is not None]
        for name in named if scheme else ():
            findings.wrong(name, show(document[name]), f"with {why} the node speaks plain HTTP: leave one of them out")
        if external and document.get("TRUSTED_PROXY_CIDR") in (None, []):
            findings.warn(
                "TRUSTED_PROXY_CIDR does not list who ends TLS (EXTERNAL_TLS_TERMINATION): all clients come from its address, and "
                "are one where what one may have is limited, as in failed logins"
            )
        return edge
    return evolve(edge, tls=_read_tls(document, folder, findings))


def _flag(document: Mapping[str, object], key: str, findings: Findings) -> bool:
    value = document.get(key)
    try:
        return False if value is None else read_flag(value)
    except Unfit as error:
        findings.wrong(key, show(value), str(error))
        return False


def _read_tls(document: Mapping[str, object], folder: Path | None, findings: Findings) -> TlsSettings | None:
    """Return the certificate to serve with, None after errors."""
    before = len(findings.problems)
    paths = [_read_path(document, name, findings) for name in (CERTIFICATE, KEY)]
    if len(findings.problems) > before:
        return None
    if paths == [None, None] and folder is not None:
        beside = [folder / name for name in _QUAYS]
        paths = [path if path.is_file() else None for path in beside]
        for name, path in zip((CERTIFICATE, KEY), paths, strict=True):
            if path is not None and (reason := why_unreadable(path)) is not None:
                findings.wrong(name, show(str(path)), reason)
        if len(findings.problems) > before:
            return None
    certificate, key = paths
    if certificate is None and key is None:
        findings.wrong(
            CERTIFICATE,
            "nothing",
            "clients are promised https (PREFERRED_URL_SCHEME): name the certificate's file here and its key's in "
            f"{KEY}, or set EXTERNAL_TLS_TERMINATION: true where a load balancer ends TLS, "
            "or PREFERRED_URL_SCHEME: http for plain HTTP",
        )
        return None
    if certificate is None or key is None:
        missing, there = (CERTIFICATE, KEY) if certificate is None else (KEY, CERTIFICATE)
        findings.wrong(missing, "nothing", f"there is a file for {there}: name both")
        return None
    given: dict[str, Any] = {}
    for name, field, read in (
        ("SSL_PROTOCOLS", "protocols", _protocols),
        ("SSL_CIPHERS", "ciphers", _ciphers),
        ("SSL_CIPHERSUITES", "suites", _suites),
    ):
        if document.get(name) is not None:
            try:
                given[field] = read(document[name], findings)
            except Unfit as error:
                findings.wrong(name, show(document[name]), str(error))
    tls = TlsSettings(certificate, key, **given)
    try:
        make_context(tls)
    except BadCertificate as error:
        at = {str(certificate): CERTIFICATE, str(key): KEY}.get(error.path, "SSL_CIPHERS")
        found = show(document.get("SSL_CIPHERS")) if at == "SSL_CIPHERS" else show(error.path)
        findings.wrong(at, found, error.reason)
        return None
    return tls


def _read_path(document: Mapping[str, object], key: str, findings: Findings) -> Path | None:
    value = document.get(key)
    if value is None:
        return None
    try:
        path = Path(read_text(value))
    except Unfit as error:
        findings.wrong(key, show(value), str(error))
        return None
    if (reason := why_unreadable(path)) is not None:
        findings.wrong(key, show(value), reason)
        return None
    return path


def _texts(value: object, right: str) -> list[str]:
    texts = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Unfit(right)
    return texts


def _protocols(value: object, findings: Findings) -> tuple[str, ...]:
    """Return the versions to speak. Quay's operators may list older ones: those are named and left out."""
    texts = _texts(value, f"write a list of {' and '.join(_SPOKEN)}")
    if unknown := [text for text in texts if text not in (*_SPOKEN, *_REFUSED)]:
        raise Unfit(f'"{unknown[0]}" is no version of TLS: write a list of {" and ".join(_SPOKEN)}')
    chosen = tuple(version for version in _SPOKEN if version in texts)
    if not chosen:
        raise Unfit(f"these are broken: this registry speaks {' and '.join(_SPOKEN)}")
    if left_out := [text for text in texts if text in _REFUSED]:
        findings.warn(f"SSL_PROTOCOLS: {', '.join(left_out)} is too old and left out")
    return chosen


def _ciphers(value: object, _findings: Findings) -> str:
    return ":".join(_texts(value, "write a list of OpenSSL's names of ciphers for TLS 1.2"))


def _suites(value: object, _findings: Findings) -> tuple[str, ...]:
    names = tuple(_texts(value, "write a list of OpenSSL's names of suites for TLS 1.3"))
    try:
        choose_suites(SSLContext(PROTOCOL_TLS_SERVER), names)
    except CannotChoose as error:
        raise Unfit(f"{error}: write a list such as [TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384]") from None
    return names


def _read_networks(value: object, findings: Findings) -> tuple[IPv4Network | IPv6Network, ...]:
    right = 'write a list of networks, such as ["10.0.0.0/8", "fd00::/8"]'
    if value is None or value == []:
        return ()
    listed: tuple[IPv4Network | IPv6Network, ...] = ()
    try:
        listed = tuple(ip_network(text) for text in _texts(value, right))
    except Unfit as error:
        findings.wrong("TRUSTED_PROXY_CIDR", show(value), str(error))
    except ValueError as error:
        # Says which text and what is wrong with it: "10.0.0.1/8 has host bits set".
        findings.wrong("TRUSTED_PROXY_CIDR", show(value) if isinstance(value, Hidden) else str(error), right)
    if whole := [str(network) for network in listed if network.prefixlen == 0]:
        findings.warn(
            f"TRUSTED_PROXY_CIDR: {', '.join(whole)} is everybody, so anybody may say to be anybody: failed logins and shares are "
            "counted by addresses that clients choose; list your balancers alone"
        )
    return listed
