"""Suites of TLS 1.3: which a context has, in which order, and what comes of it on the wire."""

import ssl
from pathlib import Path

import pytest

from engines.tls_suites import CannotChoose, choose_suites, prefer_fast, suites_of
from tests.certificates import Authority

FAST, LONG = "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"


def agreed(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """Shake hands in memory and return the suite."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in ends[:]:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
            chosen = end.cipher()
    assert chosen is not None
    return chosen[0]


@pytest.fixture
def server(tmp_path: Path) -> ssl.SSLContext:
    pair = Authority.make(tmp_path).sign("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def client() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_the_fast_suite_is_offered_first(server: ssl.SSLContext) -> None:
    """A server that takes its clients' order takes AES-128-GCM, and no suite is lost."""
    context = client()
    before = suites_of(context)
    server.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    assert agreed(context, server) == LONG
    prefer_fast(context)
    assert agreed(context, server) == FAST
    assert sorted(suites_of(context)) == sorted(before)


def test_what_is_not_allowed_stays_away() -> None:
    """A context that was left with fewer suites gets none back."""
    context = client()
    choose_suites(context, [LONG])
    prefer_fast(context)
    assert suites_of(context) == [LONG]


def test_a_server_has_only_what_was_chosen(server: ssl.SSLContext) -> None:
    """A server's one suite is taken, whatever its clients like better."""
    choose_suites(server, [LONG])
    context = client()
    prefer_fast(context)
    assert agreed(context, server) == LONG


@pytest.mark.parametrize("names", [["ROT13"], [FAST, "ROT13"], ["ECDHE-RSA-AES128-GCM-SHA256"], ["\u00fc"]])
def test_suites_that_openssl_does_not_have(names: list[str]) -> None:
    """A name that is no suite of TLS 1.3 is refused and named, also beside others."""
    with pytest.raises(CannotChoose, match="OpenSSL does not know " + names[-1]):
        choose_suites(client(), names)
