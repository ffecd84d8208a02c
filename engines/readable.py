"""Files that a configuration names, such as certificates: what keeps this process from reading one, in words."""

from pathlib import Path


def why_unreadable(path: str | Path) -> str | None:
    """Return why the file at `path` cannot be read here, None where it can.

    A folder above it that is closed to this process, as those of private keys are, is a reason too, and no exception.
    """
    place = Path(path)
    try:
        if not place.is_file():
            return "there is no such file on this machine"
        with place.open("rb"):
            return None
    except OSError as error:
        return f"it cannot be read: {error.strerror or type(error).__name__}"
