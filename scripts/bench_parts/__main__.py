"""`python -m scripts.bench_parts`: the command line of scripts/bench."""

import click
import structlog
import trio

from tests.services import fresh_database, required

from .copy import CopyBench, compare


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure Antipode on real stores. Results go to standard output, progress to standard error."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))


@main.command()
@click.option("--rounds", default=3, show_default=True, help="Every way goes so often, in turns.")
@click.option("--blobs", default=64, show_default=True, help="How many blobs of 16 MiB.")
@click.option("--large", default=2048, show_default=True, help="MiB of the one large blob.")
def copy(rounds: int, blobs: int, large: int) -> None:
    """Copy blobs between the two stores: our copier, one serial stream with 5 MiB parts (as Quay does), rclone if it is there."""
    bench = CopyBench(rounds, {f"{blobs} blobs of 16 MiB": (blobs, 16), f"1 blob of {large} MiB": (1, large)})
    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:
        click.echo(trio.run(compare, bench, uri))


main(prog_name="scripts/bench")
