"""What clients of TLS ask of a certificate: on every Python the same."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.s3_arguments import parse_s3
from engines.s3_bytes import _context
from engines.tls_trust import trusting
from tests.certificates import Authority
from tests.engines.test_tls_suites import agreed

Trust = Callable[[Path], ssl.SSLContext]


def of_a_store(authorities: Path) -> ssl.SSLContext:
    given = {"hostname": "127.0.0.1", "is_secure": True, "access_key": "a", "secret_key": "s", "bucket_name": "b"}
    return _context(parse_s3("RadosGWStorage", {**given, "storage_path": "/p", "ca_bundle": str(authorities)}))


def server(authority: Authority, **names: str) -> ssl.SSLContext:
    pair = authority.sign("server", **names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@pytest.mark.parametrize("trust", [trusting, of_a_store])
def test_an_authority_that_says_little_is_trusted(tmp_path: Path, trust: Trust) -> None:
    """An authority that does not say what its key may be used for vouches on Python 3.13 as it did before."""
    old = Authority.make(tmp_path, old=True)
    assert agreed(trust(old.own.certificate), server(old))


@pytest.mark.parametrize("trust", [trusting, of_a_store])
def test_a_stranger_is_refused(tmp_path: Path, trust: Trust) -> None:
    """Whom no trusted authority vouches for is refused."""
    known, stranger = Authority.make(tmp_path / "known", old=True), Authority.make(tmp_path / "stranger")
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate"):
        agreed(trust(known.own.certificate), server(stranger))


def test_another_name_is_refused(tmp_path: Path) -> None:
    """A certificate for another name is refused; for stores the library above compares the names."""
    known = Authority.make(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        agreed(trusting(known.own.certificate), server(known, subject="else", names="DNS:else.example.com"))
