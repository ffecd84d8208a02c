"""What a history may not show: bytes that are wrong, tags that go back, writes that their own client does not see. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tests.nemesis.history import Operation


def violations(operations: Iterable[Operation]) -> list[str]:
    """Return everything that no fault excuses, in words."""
    operations = list(operations)
    wrong = [f"{operation.client} got wrong bytes: {text}" for operation in operations for text in operation.wrong]
    by_tag: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.tag is not None:
            by_tag[operation.repository, operation.tag].append(operation)
    return [*wrong, *(text for tag, of_tag in by_tag.items() for text in _check_tag(f"{tag[0]}:{tag[1]}", of_tag))]


def _check_tag(name: str, operations: Sequence[Operation]) -> list[str]:
    """Check one tag, which has one writer: its versions count up, one after the other.

    A read may see what was written last before it began, or what was being written meanwhile; a write that was not acknowledged may
    have happened or not. And a read may not see less than another that had ended before it began.
    """
    writes = [operation for operation in operations if operation.kind in ("push", "delete")]
    reads = sorted(
        (operation for operation in operations if operation.kind in ("pull", "look") and operation.ok),
        key=lambda operation: operation.began,
    )
    found: list[str] = []
    seen: list[tuple[float, int]] = []
    for read in reads:
        floor = max((write.version or 0 for write in writes if write.ok and write.ended < read.began), default=0)
        floor = max(floor, max((version for ended, version in seen if ended < read.began), default=0))
        begun = {write.version or 0: write for write in writes if write.began < read.ended}
        if read.version is not None:
            possible = read.version in begun and begun[read.version].kind == "push" and read.version >= floor
            version = read.version
        else:
            absent = [number for number, write in begun.items() if write.kind == "delete" and number >= floor]
            possible = bool(absent) or floor == 0
            # The least that explains it: a later read may still see anything from there on.
            version = min(absent, default=0)
        if not possible:
            what = "no tag" if read.version is None else f"version {read.version}"
            found.append(
                f"{name}: {read.client} saw {what} at {read.ended:.2f} although version {floor} was there at {read.began:.2f}"
            )
        else:
            seen.append((read.ended, version))
    return found


def lost(operations: Iterable[Operation], pulled: Iterable[Operation]) -> list[str]:
    """Return the acknowledged pushes that could not be pulled whole from every node afterwards; `pulled` by (door, digest)."""
    whole = {
        (operation.door, operation.digest) for operation in pulled if operation.ok and operation.version is not None
    }
    doors = {door for door, _ in whole}
    if not doors:
        return ["nothing at all could be pulled afterwards"]
    return [
        f"{push.repository} version {push.version} ({push.digest}) was acknowledged and cannot be pulled from {door}"
        for push in operations
        if push.kind == "push" and push.ok
        for door in sorted(doors)
        if (door, push.digest) not in whole
    ]
