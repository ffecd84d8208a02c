"""What verbs show on a terminal, where others have written what is in it."""

import pytest

from node.commands.tables import show

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def test_a_terminal_obeys_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters are shown as such, in any cell; brackets and backslashes are text."""
    row = {"title": f"laptop{ESCAPE}\n\u202eevil", "tags": [r"\[red]x", "[bold]y"], "none": None, "yes": True}
    show([row], "table", ("", [row]))
    out = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in out), out
    assert out.count("\n") == 2, "a header and one row"
    for shown in (r"laptop\x1b]0;owned\x07\x1b[2J\n\u202eevil", r"\[red]x, [bold]y", " - ", " yes"):
        assert shown in out


def test_json_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON escapes them by itself."""
    show({"title": ESCAPE}, "json")
    assert "\x1b" not in capsys.readouterr().out
