"""What the S3 library reads of Amazon's services: as much as is asked for, and no more."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader

from engines.s3_descriptions import descriptions

MIB = 1 << 20
_OPEN_ONE = """
from pathlib import Path
import trio
from engines import parse_engine, s3_library
from engines.crossing import open_bridge

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

async def opened():
    place = {"hostname": "it", "is_secure": False, "port": 1, "bucket_name": "c", "storage_path": "/"}
    names = {**place, "access_key": "A", "secret_key": "B"}
    async with open_bridge():
        before = resident()
        async with parse_engine("RadosGWStorage", names).open():
            print(resident() - before)

trio.run(opened)
"""


def without_texts(found: Any) -> Any:
    """Return a description with every text emptied, as a plain value."""
    if isinstance(found, dict):
        return {
            name: "" if name == "documentation" and isinstance(value, str) else without_texts(value)
            for name, value in found.items()
        }
    return [without_texts(value) for value in found] if isinstance(found, list) else found


def fresh() -> Any:
    """Return what reads them anew: whoever opens a client changes its descriptions, as the library does with its own."""
    return descriptions.__wrapped__()


@pytest.mark.parametrize("service", ["s3", "sts"])
@pytest.mark.parametrize("kind", ["service-2", "endpoint-rule-set-1"])
def test_whom_we_talk_to_is_described_as_before(service: str, kind: str) -> None:
    """Of the services that we talk to nothing is missing but texts for people."""
    theirs = Loader().load_service_model(service, kind)
    assert fresh().load_service_model(service, kind) == without_texts(theirs)


def test_where_they_live_is_known_as_before() -> None:
    """Of all services in all regions only those remain, with everything that was said of them."""
    theirs, ours = Loader().load_data("endpoints"), fresh().load_data("endpoints")
    assert len(ours["partitions"]) == len(theirs["partitions"])
    for mine, whole in zip(ours["partitions"], theirs["partitions"], strict=True):
        assert set(mine["services"]) <= {"s3", "sts"}
        assert mine == without_texts(
            {**whole, "services": {name: whole["services"][name] for name in mine["services"]}}
        )
        assert set(mine["services"]) == {"s3", "sts"} & set(whole["services"])


def test_a_store_costs_little_memory() -> None:
    """The first client that a process opens takes less than 10 MiB; all of what the library reads would be 15."""
    done = subprocess.run(
        [sys.executable, "-c", _OPEN_ONE],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        check=True,
        timeout=120,
    )
    print(f"{int(done.stdout) / MIB:.1f} MiB")
    assert int(done.stdout) < 10 * MIB
