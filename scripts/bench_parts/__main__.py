"""`python -m scripts.bench_parts`: the command line of scripts/bench."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click
import structlog
from attrs import evolve

from .blob import compare_blobs
from .copy import compare_copies
from .ocean import compare_oceans
from .peers import say
from .pull import compare_pulls
from .push import compare_pushes
from .report import Outcome, circumstances, write
from .scale import compare_scales
from .sizes import FULL, KIB, MIB, QUICK, TINY, Sizes

Question = Callable[..., Iterable[Outcome]]

QUESTIONS: Mapping[str, tuple[Question, str]] = {
    "pull": (compare_pulls, "Whole-image pulls, single requests, and one image at a time with 5 ms to the store."),
    "push": (compare_pushes, "Whole-image pushes, and what a push costs the store."),
    "blob": (compare_blobs, "One large blob through the server and by redirect."),
    "copy": (compare_copies, "Blobs from store to store: our copier, rclone, s5cmd, one serial stream."),
    "ocean": (compare_oceans, "Pulls and pushes with the database and Redis 100 ms away."),
    "scale": (compare_scales, "Requests and pages with ten thousand to a million blobs and tags."),
}


def _read_sets(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[tuple[int, int], ...]:
    del context, parameter
    if text is None:
        return ()
    try:
        sets = tuple((int(count), _read_size(size)) for count, size in (one.split("x") for one in text.split(",")))
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: write pairs of a number and of MiB (or KiB), such as 64x16,2000x16K"
        ) from None
    if any(count < 1 or size < 1 for count, size in sets):
        raise click.BadParameter(f"{text!r}: numbers and sizes begin at 1")
    return sets


def _read_size(text: str) -> int:
    return int(text.removesuffix("K")) * KIB if text.endswith("K") else int(text) * MIB


def _answer(names: Iterable[str], sizes: Sizes, *, peers: bool, results: Path) -> None:
    for name in names:
        say(f"== {name}")
        for outcome in QUESTIONS[name][0](sizes, peers=peers):
            write(outcome, results)
            click.echo(f"{outcome.markdown()}\n{circumstances()}\n")
    say(f"tables and plots: {results}")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure Antipode beside its peers on real stores. Tables go to standard output, progress to standard error."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))


def _command(name: str, names: Iterable[str], text: str) -> None:
    @main.command(name, help=text, short_help=text)
    @click.option("--quick", "sizes", flag_value="quick", help="A few minutes in all: fewer rounds and smaller blobs.")
    @click.option("--tiny", "sizes", flag_value="tiny", help="Seconds: only to see that the benchmark works.")
    @click.option(
        "--peers/--no-peers", default=True, show_default=True, help="Measure distribution, zot, rclone, s5cmd, too."
    )
    @click.option(
        "--results",
        default="results/bench",
        show_default=True,
        type=click.Path(path_type=Path),
        help="Where tables and plots go.",
    )
    @click.option(
        "--blobs",
        "sets",
        callback=_read_sets,
        hidden="copy" not in names,
        metavar="COUNTxSIZE,...",
        help="What is copied from store to store, in MiB or KiB, such as 64x16,2000x16K.",
    )
    @click.option("--tls", is_flag=True, hidden="copy" not in names, help="Copy from store to store over TLS.")
    @click.option("--far", is_flag=True, hidden="copy" not in names, help="Copy from a store that is an ocean away.")
    @click.option("--rounds", type=click.IntRange(1, 100), help="How often each way is measured.")
    def command(
        sizes: str | None,
        results: Path,
        sets: tuple[tuple[int, int], ...],
        rounds: int | None,
        *,
        peers: bool,
        tls: bool,
        far: bool,
    ) -> None:
        chosen = {"quick": QUICK, "tiny": TINY}.get(sizes or "", FULL)
        chosen = evolve(chosen, copies=sets or chosen.copies, rounds=rounds or chosen.rounds, tls=tls, far=far)
        _answer(names, chosen, peers=peers, results=results)


for _name, (_, _text) in QUESTIONS.items():
    _command(_name, [_name], _text)
_command("all", list(QUESTIONS), "Everything, one after the other: about 25 minutes.")
main(prog_name="scripts/bench")
