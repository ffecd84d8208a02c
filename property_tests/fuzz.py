"""Fuzz one parser that faces the network with atheris, for a while: `scripts/fuzz TARGET --seconds N`.

What it finds it writes to a file below --corpus, with the traceback; the exit code says whether it found something. The corpus
grows from run to run, so that each goes on where the last one stopped.
"""

import argparse
import sys
from pathlib import Path

_LONGEST = 20_000
"""Bytes of one input: more than the longest head."""


def main() -> None:
    """Fuzz; does not return."""
    try:
        import atheris
    except ImportError:
        sys.exit(
            "fuzz: atheris is not installed: scripts/setup fuzz (it has wheels for Python 3.11, 3.12 and 3.13 on Linux)"
        )
    with atheris.instrument_imports(include=["node", "replication", "property_tests", "h11"]):
        from property_tests.parsers import SEEDS, TARGETS
    reader = argparse.ArgumentParser(prog="scripts/fuzz", description=(__doc__ or "").partition(":")[0])
    reader.add_argument("target", choices=sorted(TARGETS))
    reader.add_argument("--seconds", type=int, default=60)
    reader.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"))
    given = reader.parse_args()
    corpus = given.corpus / given.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[given.target]):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = [
        sys.argv[0],
        f"-max_total_time={given.seconds}",
        f"-max_len={_LONGEST}",
        "-print_final_stats=1",
        "-timeout=5",
    ]
    words += [f"-artifact_prefix={corpus}-finding-", str(corpus)]
    atheris.Setup(words, TARGETS[given.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
