"""The table of faults, and the command that makes it: python -m tests.nemesis.table [--seconds 8] [--seed 1] [FAULT ...].

    python -m tests.nemesis.table                                  every fault, one after the other
    python -m tests.nemesis.table --pairs 6                        six pairs of faults that the seed chooses, instead
    python -m tests.nemesis.table --seconds 300 "us store hung"    one outage of five minutes
    python -m tests.nemesis.table "us nodes killed + Redis hung"   two at once
    python -m tests.nemesis.table "us store hung > eu nodes killed"   one straight after the other

A trial that breaks off is named, and the next begins on a registry of its own. Exit code 1 if anything was not allowed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.nemesis.faults import FAULTS, Turn, schedule_pairs, turn_of
from tests.nemesis.ground import REDIRECT_BOUND, Ground, open_ground
from tests.nemesis.judge import Result, Tried
from tests.nemesis.trial import prepare, try_turn
from tests.services import all_stores

_HEAD = (
    "fault", "s", "streamed", f"redirected, first {REDIRECT_BOUND:.0f} s", "redirected, else", "pull commands", "push commands",
    "tried again", "worst pull s", "worst push s", "fail over s", "converge s", "not allowed",
)  # fmt: skip

_LEGEND = f"""
Counts are tried/failed. *Streamed* and *redirected*: pulls by clients that try nothing again, through nodes that stream and through
nodes that redirect to the stores; a redirected pull that was under way when a fault began, or began in its first
{REDIRECT_BOUND:.0f} s (probe interval and probe deadline), counts apart. *Pull* and *push commands* (deletes too): of clients that
try again as docker and podman do; *tried again*: their requests that failed. *Worst*: the longest of all, retries included.
*Fail over*: from the fault (the last of several) to the last request that began and failed while it lasted. *Converge*: from the
end of the fault until every copy was there, none was suspect and every node and store was well. *Not allowed*: lost pushes, wrong
bytes, tags that went back, objects that were not mended, failures after 20 s of silence, failures that this fault does not excuse.
"""


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table, with what its columns count."""
    lines = [_HEAD, ["---"] * len(_HEAD), *map(_line, results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + _LEGEND


def _line(result: Result) -> list[str]:
    return [
        result.name,
        f"{result.seconds:.0f}",
        *map(_count, (result.streamed, result.redirected_early, result.redirected, result.pulls, result.pushes)),
        str(result.retried),
        *(f"{seconds:.1f}" for seconds in (result.worst_pull, result.worst_push, result.fail_over, result.converge)),
        str(len(result.wrong)),
    ]


def _count(tried: Tried) -> str:
    return f"{tried.tried}/{tried.failed}"


async def _main(turns: Sequence[Turn], seed: int, logs: Path | None) -> int:
    results: list[Result] = []
    broken: list[str] = []
    waiting = list(turns)
    while waiting:
        turn = waiting[0]
        try:
            async with open_ground(all_stores()) as ground:
                await prepare(ground)
                while waiting:
                    turn = waiting.pop(0)
                    began = time.monotonic()
                    results.append(await try_turn(ground, turn, seed, f"trial{len(results)}-{seed}"))
                    await _say(results[-1], time.monotonic() - began, ground, logs)
        except Exception as error:  # noqa: BLE001 - said, and the other faults are tried all the same
            broken.append(f"{turn.name}: broke off: {error!r}"[:2000])
            print(broken[-1], file=sys.stderr, flush=True)
            waiting = [other for other in waiting if other is not turn]
    print(table(results))
    print("\n".join(broken))
    return 1 if broken or any(result.wrong for result in results) else 0


async def _say(result: Result, took: float, ground: Ground, logs: Path | None) -> None:
    for text in (*result.errors[:40], *(f"NOT ALLOWED: {text}" for text in result.wrong[:40])):
        print(f"    {text}", file=sys.stderr)
    print(" | ".join(_line(result)), f"({took:.0f} s in all)", file=sys.stderr, flush=True)
    if logs is not None:
        for node in ground.cluster:
            await trio.Path(logs / f"{node.name}.log").write_text(node.log)


def main() -> int:
    """Try the named faults, or all, one after the other on one registry."""
    parser = argparse.ArgumentParser(description="Break every part under load and say what clients saw.")
    parser.add_argument("fault", nargs="*", metavar="FAULT", help=f"one of: {', '.join(FAULTS)}; default: all")
    parser.add_argument("--pairs", type=int, default=0, help="try so many pairs of faults that the seed chooses")
    parser.add_argument("--seconds", type=float, default=8, help="how long each named fault lasts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="a folder for the nodes' logs")
    options = parser.parse_args()
    try:
        turns = [turn_of(words, options.seconds) for words in options.fault]
    except ValueError as error:
        parser.error(str(error))
    turns += schedule_pairs(options.seed, options.pairs)
    return trio.run(_main, turns or [turn_of(name, options.seconds) for name in FAULTS], options.seed, options.logs)


if __name__ == "__main__":
    sys.exit(main())
