"""What all API functions share: problems as RFC 9457 says them, and parameters read with errors that say what would be right."""

import difflib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from attrs import define, field, frozen

from node.answers import Headers
from node.config.values import Unfit, show

T = TypeVar("T")

Json = dict[str, object]

PROBLEM_TYPE = "application/problem+json"


@frozen
class Wrong:
    """One parameter that cannot be used: its name, what was found, and what would be right."""

    field: str
    found: str
    right: str


class Problem(Exception):
    """A request that cannot be answered as asked (RFC 9457). The web edge makes `application/problem+json` of it."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        *,
        wrong: tuple[Wrong, ...] = (),
        more: Json | None = None,
        headers: Headers = (),
    ) -> None:
        super().__init__(title, detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.wrong = wrong
        self.more = more or {}
        self.headers = headers

    def document(self, request_id: str = "") -> Json:
        """Return the body."""
        document: Json = {"type": "about:blank", "title": self.title, "status": self.status}
        if self.detail:
            document["detail"] = self.detail
        if self.wrong:
            document["errors"] = [
                {"field": wrong.field, "found": wrong.found, "right": wrong.right} for wrong in self.wrong
            ]
        if request_id:
            document["request_id"] = request_id
        return {**document, **self.more}


@define
class Parameters:
    """A request's query. Read every parameter, then `check`: it raises one problem with everything that is wrong.

    A parameter that nobody read is wrong, too: it would silently do nothing.
    """

    _given: Mapping[str, tuple[str, ...]]
    _wrong: list[Wrong] = field(factory=list)
    _known: list[str] = field(factory=list)

    def required(self, name: str, read: Callable[[str], T]) -> T | None:
        """Return a parameter that must be there; None where it is wrong. `read` raises Unfit with what would be right."""
        value = self.optional(name, read, None)
        if name not in self._given:
            self._wrong.append(Wrong(name, "nothing", "it is required"))
        return value

    def optional(self, name: str, read: Callable[[str], T], default: T) -> T:
        """Return a parameter, or the default where it is absent or wrong."""
        self._known.append(name)
        values = self._given.get(name, ())
        if not values:
            return default
        if len(values) > 1:
            self._wrong.append(Wrong(name, f"{len(values)} values", "give it once"))
            return default
        try:
            return read(values[0])
        except Unfit as error:
            self._wrong.append(Wrong(name, show(values[0]), str(error)))
            return default

    def refuse(self, name: str, right: str) -> None:
        """Note that a parameter is wrong for a reason that its reader could not know."""
        self._wrong.append(Wrong(name, show(next(iter(self._given.get(name, ())), None)), right))

    def check(self) -> None:
        """Raise a Problem (400) if anything was wrong."""
        for name in self._given:
            if name not in self._known:
                close = difflib.get_close_matches(name, self._known, n=1)
                right = f"did you mean {close[0]}?" if close else f"known are {', '.join(self._known)}"
                self._wrong.append(Wrong(name[:60], "an unknown parameter", right))
        if self._wrong:
            detail = "; ".join(f"{wrong.field}: found {wrong.found}; {wrong.right}" for wrong in self._wrong)
            raise Problem(400, "parameters that cannot be used", detail, wrong=tuple(self._wrong))


def parse_flag(text: str) -> bool:
    """Return what `true` or `false` says. Raises Unfit."""
    if text in ("true", "false"):
        return text == "true"
    raise Unfit("write true or false")


def timestamp(seconds: float | None) -> str | None:
    """Return POSIX seconds as RFC 3339 text in UTC, with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
