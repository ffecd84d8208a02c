"""The API against its own document: a tool makes requests from it, good and bad, and judges every answer by it."""

import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from node.api.openapi import PREFIX
from tests.cluster import Node, StartCluster

_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
_SILENT = 300.0
"""Seconds without a request, after which the tool hangs. How long all of them take is the machine's business."""
_LOOK = 5.0


@pytest.mark.parametrize("phase", ["coverage", "fuzzing"])
async def test_the_document_is_true(start_cluster: StartCluster, tmp_path: Path, phase: str) -> None:
    """What the document allows is answered as it says, what it forbids is refused, and nothing makes a node fail."""
    node = (await start_cluster("us eu"))["us"]
    words = (
        str(Path(sysconfig.get_path("scripts"), "schemathesis")),
        "run",
        f"{node.url}{PREFIX}/openapi.json",
        f"--phases={phase}",
        "--generation-deterministic",
        "--max-examples=8",
        f"--checks={','.join(_CHECKS)}",
        # Below /user/, where every other word is a user's name.
        f"--exclude-path={PREFIX}/user/initialize",
        f"--request-timeout={_SILENT}",
        "--warnings=off",
        "--no-color",
    )
    code, said = await run_while_it_works(words, tmp_path, lambda: _requests(node), _SILENT)
    assert code == 0, said
    assert _requests(node) > 100


async def run_while_it_works(
    words: Sequence[str], folder: Path, progress: Callable[[], int], silent: float
) -> tuple[int | None, str]:
    """Run a program while `progress` grows at least every `silent` seconds; return its code, and the end of what it said."""
    output = folder / "output.txt"
    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        with output.open("wb") as file:
            process = await nursery.start(lambda task_status: _run(words, folder, file.fileno(), ended, task_status))
        while not ended.is_set():
            before, until = progress(), trio.current_time() + silent
            while not ended.is_set() and progress() == before:
                assert trio.current_time() < until, f"nothing for {silent:g} s after {before}:\n{_end(output)}"
                with trio.move_on_after(_LOOK):
                    await ended.wait()
    return process.returncode, _end(output)


async def _run(
    words: Sequence[str], folder: Path, output: int, ended: trio.Event, task_status: trio.TaskStatus[trio.Process]
) -> None:
    await trio.run_process(words, stdout=output, stderr=output, check=False, cwd=folder, task_status=task_status)
    ended.set()


def _requests(node: Node) -> int:
    return node.log.count('"logger": "antipode.access"')


def _end(output: Path) -> str:
    return output.read_text(errors="replace")[-8000:]
