"""The checker sees what it is there for: histories made by hand that are good, and that are bad in one way each."""

from tests.nemesis.checker import lost, violations
from tests.nemesis.history import Kind, Operation


def operation(kind: Kind, began: float, ended: float, version: int | None, *, ok: bool = True) -> Operation:
    return Operation(
        kind, f"client-{began}", "streams", "a/b", "tag", began, version, f"sha256:{version}", ended=ended, ok=ok
    )


def test_a_good_history_has_nothing_wrong() -> None:
    """Reads see the last write, or one that is under way; a write without an answer may have happened."""
    assert not violations(
        [
            operation("look", 0, 1, None),
            operation("push", 1, 3, 1),
            operation("pull", 2, 2.5, 1),
            operation("pull", 4, 5, 1),
            operation("push", 6, 8, 2, ok=False),
            operation("pull", 9, 10, 2),
            operation("delete", 11, 12, 3),
            operation("look", 13, 14, None),
            operation("push", 15, 16, 4),
            operation("look", 17, 18, 4),
        ]
    )


def test_a_tag_that_goes_back_is_seen() -> None:
    """A read may not see an older version than a read that had ended before, though no write was acknowledged."""
    history = [
        operation("push", 0, 1, 1),
        operation("push", 2, 20, 2, ok=False),
        operation("pull", 3, 4, 2),
        operation("pull", 5, 6, 1),
    ]
    assert "saw version 1" in violations(history)[0]


def test_a_client_that_does_not_see_its_own_write_is_seen() -> None:
    """After an acknowledged write nobody sees the version before."""
    history = [operation("push", 0, 1, 1), operation("push", 2, 3, 2), operation("look", 4, 5, 1)]
    assert "saw version 1" in violations(history)[0]


def test_a_tag_that_vanishes_is_seen() -> None:
    """No tag is only right before the first write and after a delete."""
    assert "saw no tag" in violations([operation("push", 0, 1, 1), operation("look", 2, 3, None)])[0]


def test_a_deleted_tag_that_comes_back_is_seen() -> None:
    """After an acknowledged delete the old version is not seen again."""
    history = [operation("push", 0, 1, 1), operation("delete", 2, 3, 2), operation("look", 4, 5, 1)]
    assert "saw version 1" in violations(history)[0]


def test_a_version_that_nobody_wrote_is_seen() -> None:
    """What is read was written."""
    assert violations([operation("push", 0, 1, 1), operation("look", 2, 3, 7)])


def test_wrong_bytes_are_seen() -> None:
    """Bytes that do not match their digest are a violation whatever happened."""
    pull = operation("pull", 1, 2, None, ok=False)
    pull.wrong.append("other bytes")
    assert "other bytes" in violations([pull])[0]


def test_a_lost_push_is_seen() -> None:
    """An acknowledged push has to be whole on every node afterwards; one without an answer need not."""
    pushes = [operation("push", 0, 1, 1), operation("push", 2, 3, 2), operation("push", 4, 5, 3, ok=False)]
    there = [operation("pull", 9, 10, 1)]
    assert [text for text in lost(pushes, there) if "version 2" in text] == lost(pushes, there)
    assert lost(pushes, [])
