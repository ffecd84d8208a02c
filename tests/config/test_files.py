"""Files that the configuration names and that the node may not read: an error with the key, before anything is started."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from engines.readable import why_unreadable
from node.config.load import ConfigurationErrors, load_settings
from tests.certificates import Authority, Pair
from tests.configurations import document, errors, stores

_NOBODY = 65534


@contextmanager
def nobody() -> Iterator[None]:
    """Be an account that may look into no folder of another's, as a service's account is; who is none but root is that already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Pair]:
    """A certificate in a folder that is closed to others, as that of certbot is."""
    tmp_path.chmod(0o711)
    folder = tmp_path / "closed"
    folder.mkdir()
    pair = Authority.make(folder).sign("node")
    folder.chmod(0o700 if os.geteuid() == 0 else 0)
    yield pair
    folder.chmod(0o700)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda path: {"PREFERRED_URL_SCHEME": "https", "SSL_CERTIFICATE": path}, "SSL_CERTIFICATE"),
        (lambda path: {"DB_CONNECTION_ARGS": {"sslrootcert": path}}, "DB_CONNECTION_ARGS.sslrootcert"),
        (
            lambda path: {"USER_EVENTS_REDIS": {"host": "h", "ssl": True, "ssl_ca_certs": path}},
            "USER_EVENTS_REDIS.ssl_ca_certs",
        ),
        (lambda path: {"EXTRA_CA_CERTS": path}, "EXTRA_CA_CERTS"),
        (lambda path: {"UPLOAD_SPOOL": {"path": path}}, "UPLOAD_SPOOL.path"),
        (
            lambda path: {"DISTRIBUTED_STORAGE_CONFIG": stores(is_secure=True, ca_bundle=path)},
            "DISTRIBUTED_STORAGE_CONFIG.us",
        ),
    ],
)
def test_what_the_node_may_not_look_at_is_named(
    closed: Pair, change: Callable[[str], dict[str, object]], key: str
) -> None:
    """A folder that is closed to the node's account is an error like a file that is not there, and no traceback."""
    with nobody():
        assert any(
            line.startswith(f"{key}: ") and "Permission denied" in line
            for line in errors(**change(str(closed.certificate)))
        )


def test_a_name_that_no_file_can_have_is_an_error() -> None:
    """Somebody has put the certificate itself where its file is to be named."""
    reason = why_unreadable("x" * 5000)
    assert reason is not None
    assert "too long" in reason


def test_a_key_beside_the_configuration_that_may_not_be_read_is_the_one_that_is_named(tmp_path: Path) -> None:
    """Not the certificate, which everybody may read."""
    pair = Authority.make(tmp_path).sign("node")
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "config.yaml").write_text(yaml.safe_dump(document(PREFERRED_URL_SCHEME="https")))
        (folder / "ssl.cert").write_bytes(pair.certificate.read_bytes())
        (folder / "ssl.key").write_bytes(pair.key.read_bytes())
        (folder / "ssl.key").chmod(0o600 if os.geteuid() == 0 else 0)
        with nobody(), pytest.raises(ConfigurationErrors) as caught:
            load_settings(folder / "config.yaml", {})
    (line,) = map(str, caught.value.problems)
    assert line.startswith("SSL_CERTIFICATE_KEY: found ")
    assert line.endswith("it cannot be read: Permission denied")
