"""skopeo and podman through haproxy while a node or a store fails: no command fails, with the retries that each has by default."""

import shutil
from pathlib import Path

import pytest

from tests.nemesis.faults import FAULTS
from tests.nemesis.ground import open_ground
from tests.nemesis.real_clients import run_commands
from tests.services import Store

CLIENTS = [name for name in ("skopeo", "podman") if shutil.which(name)]
FAULT_SECONDS = 10.0


@pytest.mark.long
@pytest.mark.skipif(shutil.which("haproxy") is None or "skopeo" not in CLIENTS, reason="no haproxy or no skopeo")
@pytest.mark.parametrize("name", ["us nodes killed", "us nodes drained", "us store refused", "us store hung"])
async def test_no_command_fails(s3_stores: dict[str, Store], tmp_path: Path, name: str) -> None:
    """A push or pull that is under way, or begins, while one part fails ends well."""
    async with open_ground(s3_stores) as ground:
        commands = await run_commands(ground, FAULTS[name], FAULT_SECONDS, tmp_path, CLIENTS)
    assert commands.ended
    assert not commands.failed, commands.failed
