"""`python -m scripts.bench_parts`: the command line of scripts/bench."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click
import structlog

from .blob import compare_blobs
from .copy import compare_copies
from .ocean import compare_oceans
from .peers import say
from .pull import compare_pulls
from .push import compare_pushes
from .report import Outcome, circumstances, write
from .scale import compare_scales
from .sizes import FULL, QUICK, TINY, Sizes

Question = Callable[..., Iterable[Outcome]]

QUESTIONS: Mapping[str, tuple[Question, str]] = {
    "pull": (compare_pulls, "Whole-image pulls, single requests, and one image at a time with 5 ms to the store."),
    "push": (compare_pushes, "Whole-image pushes, and what a push costs the store."),
    "blob": (compare_blobs, "One large blob through the server and by redirect."),
    "copy": (compare_copies, "Blobs from store to store: our copier, rclone, s5cmd, one serial stream."),
    "ocean": (compare_oceans, "Pulls and pushes with the database and Redis 100 ms away."),
    "scale": (compare_scales, "Requests and pages with ten thousand to a million blobs and tags."),
}


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
    def command(sizes: str | None, results: Path, *, peers: bool) -> None:
        _answer(names, {"quick": QUICK, "tiny": TINY}.get(sizes or "", FULL), peers=peers, results=results)


for _name, (_, _text) in QUESTIONS.items():
    _command(_name, [_name], _text)
_command("all", list(QUESTIONS), "Everything, one after the other: about 25 minutes.")
main(prog_name="scripts/bench")
