"""The API against its own document: a tool makes requests from it, good and bad, and judges every answer by it."""

import sysconfig
from pathlib import Path

import trio

from node.api.openapi import PREFIX
from tests.cluster import StartCluster

_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


async def test_the_document_is_true(start_cluster: StartCluster, tmp_path: Path) -> None:
    """What the document allows is answered as it says, what it forbids is refused, and nothing makes a node fail."""
    nodes = await start_cluster("us eu")
    words = (
        str(Path(sysconfig.get_path("scripts"), "schemathesis")),
        "run",
        f"{nodes['us'].url}{PREFIX}/openapi.json",
        "--phases=coverage,fuzzing",
        "--generation-deterministic",
        "--max-examples=8",
        f"--checks={','.join(_CHECKS)}",
        # Below /user/, where every other word is a user's name.
        f"--exclude-path={PREFIX}/user/initialize",
        "--warnings=off",
        "--no-color",
    )
    with trio.fail_after(600):
        done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout.decode()[-8000:] + done.stderr.decode()[-2000:]
