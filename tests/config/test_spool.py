"""TEE_SPOOL: a folder and its bound, each optional; every slip is named."""

from pathlib import Path

import pytest

from node.config.settings import SpoolSettings
from tests.configurations import only_error, settings


def test_what_a_spool_says(tmp_path: Path) -> None:
    """Both parts may be left out; zero does without."""
    assert settings().tee_spool == SpoolSettings(None, 1 << 30)
    assert settings(TEE_SPOOL={"path": str(tmp_path)}).tee_spool == SpoolSettings(tmp_path, 1 << 30)
    assert settings(TEE_SPOOL={"max_bytes": "5MiB"}).tee_spool == SpoolSettings(None, 5 << 20)
    assert settings(TEE_SPOOL={"max_bytes": 0}).tee_spool.most == 0


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("1GiB", "TEE_SPOOL: "),
        ({"max_byte": 5}, "did you mean max_bytes?"),
        ({"folder": "x"}, "write path or max_bytes"),
        ({"path": "spool"}, "TEE_SPOOL.path: "),
        ({"path": "/nowhere/at/all"}, "TEE_SPOOL.path: "),
        ({"max_bytes": 1000}, "TEE_SPOOL.max_bytes: "),
        ({"max_bytes": "much"}, "TEE_SPOOL.max_bytes: "),
    ],
)
def test_slips_are_named(value: object, named: str) -> None:
    """Each error says where it is and what would be right."""
    assert named in only_error(TEE_SPOOL=value)
