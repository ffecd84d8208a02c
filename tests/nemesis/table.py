"""The table of faults, and the command that makes it: python -m tests.nemesis.table [--seconds 8] [--seed 1] [fault ...]."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.nemesis.faults import FAULTS
from tests.nemesis.ground import open_ground
from tests.nemesis.trial import Result, prepare, try_fault
from tests.services import all_stores

_HEAD = (
    "fault", "s", "pulls", "pushes", "streamed errors", "redirected errors", "retried", "failed commands", "worst s",
    "fail over s", "converge s", "not allowed",
)  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = [_HEAD, ["---"] * len(_HEAD), *map(_line, results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(result: Result) -> list[str]:
    return [
        result.fault.name,
        f"{result.seconds:.0f}",
        *map(str, (result.pulls, result.pushes, result.streamed_errors, result.redirected_errors, result.retried)),
        str(result.failed_commands),
        f"{result.worst_latency:.1f}",
        f"{result.fail_over:.1f}",
        f"{result.converge:.1f}",
        str(len(result.wrong)),
    ]


async def _main(names: Sequence[str], seconds: float, seed: int, logs: Path | None) -> int:
    results = []
    async with open_ground(all_stores()) as ground:
        await prepare(ground)
        for number, name in enumerate(names or list(FAULTS)):
            result = await try_fault(ground, FAULTS[name], seconds, seed, f"trial{number}-{seed}")
            results.append(result)
            for text in (*result.errors[:40], *(f"NOT ALLOWED: {text}" for text in result.wrong[:40])):
                print(f"    {text}", file=sys.stderr)
            print(" | ".join(_line(result)), file=sys.stderr, flush=True)
            if logs is not None:
                for node in ground.cluster:
                    await trio.Path(logs / f"{node.name}.log").write_text(node.log)
    print(table(results))
    return 1 if any(result.wrong for result in results) else 0


def main() -> int:
    """Try the named faults, or all, one after the other on one registry."""
    parser = argparse.ArgumentParser(description="Break every part under load and say what clients saw.")
    parser.add_argument("fault", nargs="*", metavar="FAULT", help=f"one of: {', '.join(FAULTS)}; default: all")
    parser.add_argument("--seconds", type=float, default=8, help="how long each fault lasts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="a folder for the nodes' logs")
    options = parser.parse_args()
    if unknown := [name for name in options.fault if name not in FAULTS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    return trio.run(_main, options.fault, options.seconds, options.seed, options.logs)


if __name__ == "__main__":
    sys.exit(main())
