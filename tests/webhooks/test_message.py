"""What is sent, and where to: pure."""

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.hooks.addresses import networks, refuse_address, refuse_url
from node.hooks.courier import CourierSettings, wait_before
from node.hooks.message import Event, make_message, read_secret, sign, write_secret
from node.hooks.secrets import Sealed, keep_secret, open_secret

EVENT = Event("7e9f", "pushed", "team/app:v1", 1_700_000_000.25, {"repository": "team/app"})


def test_an_event_is_a_cloud_event() -> None:
    """The body is a CloudEvent in structured JSON with every required attribute."""
    message = make_message(EVENT, source="https://registry.test", secret=b"s" * 32, now=1_700_000_100.9)
    assert json.loads(message.body) == {
        "specversion": "1.0",
        "id": "7e9f",
        "source": "https://registry.test",
        "type": "io.antipode.pushed",
        "time": "2023-11-14T22:13:20.250Z",
        "subject": "team/app:v1",
        "datacontenttype": "application/json",
        "data": {"repository": "team/app"},
    }
    assert message.headers["content-type"] == "application/cloudevents+json"
    assert (message.headers["webhook-id"], message.headers["webhook-timestamp"]) == ("7e9f", "1700000100")


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """It is the HMAC-SHA256 of id, timestamp and body, as the specification's own example has it."""
    secret = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert secret is not None
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected
    by_hand = hmac.new(secret, b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330." + body, hashlib.sha256).digest()
    assert expected == "v1," + base64.b64encode(by_hand).decode()


@given(st.binary(min_size=24, max_size=64))
def test_a_secret_is_read_as_it_is_written(secret: bytes) -> None:
    """What a receiver is given is the secret that signs."""
    assert read_secret(write_secret(secret)) == secret


@given(st.binary(min_size=24, max_size=64))
def test_a_secret_is_kept_encrypted(secret: bytes) -> None:
    """With DATABASE_SECRET_KEY a secret is not readable in the database, and with another key or none it is not opened."""
    kept = keep_secret(secret, "a key of some length")
    assert secret not in kept
    assert open_secret(kept, "a key of some length") == secret
    for other in ("another key of some length", None):
        with pytest.raises(Sealed):
            open_secret(kept, other)
    assert open_secret(keep_secret(secret, None), None) == secret


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_???", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
def test_a_secret_that_cannot_be_used(text: str) -> None:
    """What is too short, or not written as a secret, is none."""
    assert read_secret(text) is None


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",  # noqa: S104
        "255.255.255.255", "224.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2002:a00:1::", "2001:db8::1", "localhost", "", "0x7f.1", "2130706433", "::7f00:1", "::ffff:0:7f00:1", "fec0::1",
        "64:ff9b:1::7f00:1", "5f00::1", "4000::1", "192.0.0.192", "192.88.99.1", "168.63.129.16", "::ffff:168.63.129.16",
    ],
)  # fmt: skip
def test_what_is_not_public_is_refused(address: str) -> None:
    """Loopback, link-local, private, shared, reserved and multicast addresses are refused, in every spelling inside IPv6, too."""
    assert refuse_address(address, ())


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_what_is_public_is_not(address: str) -> None:
    """A public address is fine."""
    assert refuse_address(address, ()) is None


def test_an_operator_may_allow_networks() -> None:
    """An allowed network is, and nothing beside it; it is allowed inside of IPv6, too."""
    allowed = networks(("10.1.0.0/16", "fd00::/8"))
    assert [refuse_address(text, allowed) is None for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "10.2.0.1", "::1")] == [
        True, True, True, False, False
    ]  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example.com", "ftp://hooks.example.com", "file:///etc/passwd", "https://", "https://u:p@hooks.example.com",
        "https://127.0.0.1/", "http://[::1]/", "http://[::1/", "https://hooks.example.com:99999/", "https://hooks.example.com/#x",
        "https://hooks.example.com/\r\nx: y", "https://hooks.example.com/ü", "https://hooks.example.com/" + "x" * 2000,
        "https://hooks.example.com:0/",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_used(url: str) -> None:
    """A webhook's URL is http or https with a public host, without anything that could end up elsewhere."""
    assert refuse_url(url, ())


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com/a?b=c", "http://hooks.example.com:8080", "https://1.1.1.1/"]
)
def test_a_url_that_can(url: str) -> None:
    """A name is fine until it is looked up."""
    assert refuse_url(url, ()) is None


@given(st.text())
def test_any_text_as_url(text: str) -> None:
    """Whatever is given as a URL is judged, never an error."""
    refuse_url(text, ())
    refuse_address(text, ())


@given(st.integers(1, 40), st.floats(0, 1))
def test_back_off(attempt: int, dice: float) -> None:
    """Waits grow up to a cap, never below half of it, and end: about three days with what is set."""
    settings = CourierSettings()
    wait = wait_before(attempt, settings, dice)
    if attempt >= settings.attempts:
        assert wait is None
        return
    whole = min(settings.longest, settings.first * 2 ** (attempt - 1))
    assert wait is not None
    assert whole / 2 <= wait <= whole
    total = sum(min(settings.longest, settings.first * 2**n) for n in range(settings.attempts - 1))
    assert 86400 < total < 4 * 86400
