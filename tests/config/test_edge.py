"""How clients reach the node: a certificate or somebody who ends TLS, and whose word about clients counts."""

import time
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml

from node.config.load import load_settings
from node.config.report import report
from node.config.settings import CONNECTIONS_OVER_TLS, EdgeSettings, TlsSettings
from tests.certificates import Authority, Pair
from tests.configurations import document, errors, only_error, settings


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Authority.make(tmp_path_factory.mktemp("authority")).sign("node")


def files(pair: Pair) -> dict[str, str]:
    return {"SSL_CERTIFICATE": str(pair.certificate), "SSL_CERTIFICATE_KEY": str(pair.key)}


def test_https_needs_a_certificate_or_somebody_who_ends_tls(pair: Pair) -> None:
    """Plain HTTP is spoken only where one of two keys says so; otherwise a missing certificate is an error that names all ways."""
    assert settings(PREFERRED_URL_SCHEME="http").edge.tls is None
    assert settings(PREFERRED_URL_SCHEME="https", EXTERNAL_TLS_TERMINATION=True).edge.tls is None
    line = only_error(PREFERRED_URL_SCHEME="https")
    assert line.startswith("SSL_CERTIFICATE: found nothing")
    assert "EXTERNAL_TLS_TERMINATION: true" in line
    assert "PREFERRED_URL_SCHEME: http " in line
    made = settings(PREFERRED_URL_SCHEME="https", **files(pair)).edge
    assert made == EdgeSettings(TlsSettings(pair.certificate, pair.key))


def test_who_ends_tls_should_be_listed() -> None:
    """Somebody stands in front who is not believed: that is said, as it makes one client of all."""

    def said(**given: object) -> list[str]:
        return [line for line in settings(**given).warnings if line.startswith("TRUSTED_PROXY_CIDR")]

    external = {"PREFERRED_URL_SCHEME": "https", "EXTERNAL_TLS_TERMINATION": True}
    (line,) = said(**external)
    assert "does not list who ends TLS" in line
    assert said(TRUSTED_PROXY_CIDR=["10.0.0.0/8"], **external) == []
    assert said(PREFERRED_URL_SCHEME="http") == []


def test_everybody_is_no_proxy() -> None:
    """A list of proxies that everybody is in believes what clients write themselves, and that is said."""
    for listed, named in ((["0.0.0.0/0"], "0.0.0.0/0"), (["10.0.0.0/28", "::/0"], "::/0")):
        said = [line for line in settings(TRUSTED_PROXY_CIDR=listed).warnings if line.startswith("TRUSTED_PROXY")]
        assert [f"TRUSTED_PROXY_CIDR: {named} is everybody" in line for line in said] == [True]


def test_tls_takes_memory(pair: Pair) -> None:
    """A node that ends TLS itself takes fewer connections at once, unless it is told how many."""
    tls = {"PREFERRED_URL_SCHEME": "https", **files(pair)}
    assert settings(PREFERRED_URL_SCHEME="https", EXTERNAL_TLS_TERMINATION=True).maximum_connections == 4096
    assert settings(**tls).maximum_connections == CONNECTIONS_OVER_TLS
    assert settings(MAXIMUM_CONNECTIONS=5000, **tls).maximum_connections == 5000


def test_quays_files_beside_the_configuration_are_taken(pair: Pair, tmp_path: Path) -> None:
    """`ssl.cert` and `ssl.key` in the configuration's folder are the certificate where no key names another."""
    (tmp_path / "ssl.cert").write_bytes(pair.certificate.read_bytes())
    (tmp_path / "ssl.key").write_bytes(pair.key.read_bytes())
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document(PREFERRED_URL_SCHEME="https")))
    made = load_settings(path, {})
    assert made.edge.tls == TlsSettings(tmp_path / "ssl.cert", tmp_path / "ssl.key")
    assert f"certificate {tmp_path}/ssl.cert" in report(made)
    path.write_text(yaml.safe_dump(document(PREFERRED_URL_SCHEME="https", **files(pair))))
    assert load_settings(path, {}).edge.tls == TlsSettings(pair.certificate, pair.key)


def test_a_certificate_that_would_not_be_used_is_an_error(pair: Pair) -> None:
    """A certificate beside plain HTTP is a contradiction: somebody believes that there is TLS."""
    for plain in ({"PREFERRED_URL_SCHEME": "http"}, {"EXTERNAL_TLS_TERMINATION": True}):
        lines = errors(**files(pair), **plain)
        assert [line.split(":")[0] for line in lines] == ["SSL_CERTIFICATE", "SSL_CERTIFICATE_KEY"]
        assert "speaks plain HTTP" in lines[0]


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"SSL_CERTIFICATE_KEY": None}, "SSL_CERTIFICATE_KEY", "there is a file for SSL_CERTIFICATE: name both"),
        ({"SSL_CERTIFICATE": "/nowhere"}, "SSL_CERTIFICATE", "no such file"),
        ({"SSL_CERTIFICATE_KEY": 1}, "SSL_CERTIFICATE_KEY", "write some text"),
        ({"SSL_PROTOCOLS": ["TLSv1.1"]}, "SSL_PROTOCOLS", "these are broken"),
        ({"SSL_PROTOCOLS": ["TLSv1.4"]}, "SSL_PROTOCOLS", '"TLSv1.4" is no version'),
        ({"SSL_PROTOCOLS": 3}, "SSL_PROTOCOLS", "write a list"),
        ({"SSL_CIPHERS": ["ROT13"]}, "SSL_CIPHERS", "OpenSSL knows none"),
        ({"SSL_CIPHERS": []}, "SSL_CIPHERS", "write a list"),
        ({"SSL_CIPHERSUITES": ["TLS_ROT13"]}, "SSL_CIPHERSUITES", "OpenSSL does not know TLS_ROT13"),
        ({"SSL_CIPHERSUITES": []}, "SSL_CIPHERSUITES", "write a list"),
        ({"EXTERNAL_TLS_TERMINATION": "yes"}, "EXTERNAL_TLS_TERMINATION", "true or false"),
        ({"TRUSTED_PROXY_CIDR": ["10.0.0.1/8"]}, "TRUSTED_PROXY_CIDR", "host bits"),
        ({"TRUSTED_PROXY_CIDR": ["balancer"]}, "TRUSTED_PROXY_CIDR", "write a list of networks"),
        ({"TRUSTED_PROXY_CIDR": 10}, "TRUSTED_PROXY_CIDR", "write a list of networks"),
        ({"FEATURE_PROXY_PROTOCOL": True}, "FEATURE_PROXY_PROTOCOL", "TRUSTED_PROXY_CIDR"),
    ],
)
def test_errors_name_the_key(pair: Pair, changes: dict[str, object], key: str, words: str) -> None:
    """Whatever is wrong is said with its key and what would be right."""
    line = only_error(**{"PREFERRED_URL_SCHEME": "https", **files(pair), **changes})
    assert line.startswith(f"{key}:")
    assert words in line


def test_a_key_of_another_certificate_is_found_before_the_start(pair: Pair, tmp_path: Path) -> None:
    """A pair that does not fit is an error of the configuration, not of the first handshake."""
    other = Authority.make(tmp_path).sign("other")
    line = only_error(
        PREFERRED_URL_SCHEME="https", SSL_CERTIFICATE=str(pair.certificate), SSL_CERTIFICATE_KEY=str(other.key)
    )
    assert line.startswith("SSL_CERTIFICATE_KEY:")
    assert "not that of the certificate" in line


def test_what_quays_operators_write(pair: Pair) -> None:
    """Lists may be texts; versions that are too old are named and left out; networks are those of both families."""
    made = settings(
        PREFERRED_URL_SCHEME="https",
        **files(pair),
        SSL_PROTOCOLS=["TLSv1", "TLSv1.1", "TLSv1.2"],
        SSL_CIPHERS=["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"],
        SSL_CIPHERSUITES="TLS_AES_256_GCM_SHA384,TLS_AES_128_GCM_SHA256",
        TRUSTED_PROXY_CIDR="10.0.0.0/8, fd00::/8",
        FEATURE_PROXY_PROTOCOL=True,
    )
    assert made.edge.tls is not None
    assert made.edge.tls.protocols == ("TLSv1.2",)
    assert made.edge.tls.ciphers == "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
    assert made.edge.tls.suites == ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256")
    assert made.edge.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert "SSL_PROTOCOLS: TLSv1, TLSv1.1 is too old and left out" in made.warnings
    assert "10.0.0.0/8, fd00::/8, which begin with a PROXY header" in report(made)


def test_a_certificate_that_has_expired_is_a_warning(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who checks a configuration before a restart hears what the node's log would say, and not that all is well."""
    made = settings(PREFERRED_URL_SCHEME="https", **files(pair))
    assert "expired" not in report(made)
    monkeypatch.setattr("node.config.report.time.time", lambda: time.time_ns() / 1e9 + 3 * 86400)
    assert f"  - {pair.certificate}: the certificate has expired: clients refuse this node" in report(made).splitlines()
