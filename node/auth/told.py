"""What a directory tells of groups, and why it does not. Pure."""

from collections.abc import Mapping
from enum import StrEnum

from attrs import Factory, frozen


class Unread(StrEnum):
    """Why nobody knows who is in a group. The values are those of a metric's label."""

    AWAY = "away"
    """There is no connection, or no answer in time."""
    REFUSED = "refused"
    """It answers, but not what it was asked: a wrong password, a missing right, a limit of its own."""
    UNLIKELY = "unlikely"
    """It knows nobody, or not even its own base."""
    LARGE = "large"
    """The group has more members than are read."""
    DEEP = "deep"
    """Groups in the group are too many, or go too deep."""
    UNSAID = "unsaid"
    """An identity provider did not say at a login which groups somebody is in."""


@frozen
class Trouble:
    """Why a group was not read, and in words, which are for the log."""

    why: Unread
    text: str


@frozen
class Told:
    """In which of the groups that were asked about everybody is whom the directory knows; one that it does not have is empty."""

    who: Mapping[str, frozenset[str]]
    unread: Mapping[str, Trouble] = Factory(dict)
    """Groups of which nobody knows who is in them: what was asked of them says nothing of anybody."""
