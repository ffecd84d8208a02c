"""The API as a table: each operation with its path, who may ask it, what it takes and answers, and the function that does it.

The table is all there is: `node/web/api_app.py` makes routes of it, and `openapi.py` the document, so that they cannot disagree.
"""

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any

from attrs import field, frozen

from node.api.frame import Json, Parameters, parse_flag
from node.api.tags import Means
from node.auth.model import Identity
from node.config.values import Unfit
from node.registry import Registry


class Right(Enum):
    """What somebody must be allowed to do to ask an operation. The repository or namespace is the one in its path."""

    NOTHING = "nothing"
    """Anybody may ask; the operation itself may look at who it is."""
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    ADMIN = "admin of the repository"
    NAMESPACE = "owner or administrator of the namespace"
    USER = "user"
    """Any user, no robot; the operation itself may ask for more."""
    SUPERUSER = "superuser"


@frozen
class Parameter:
    """A query parameter: how it is read (raising Unfit), and what it is without one."""

    name: str
    schema: Json
    read: Callable[[str], Any] = str
    default: Any = None
    required: bool = False
    summary: str = ""


@frozen
class Call:
    """One request of an operation: parameters and body were read and fit what the table says."""

    registry: Registry
    who: Identity
    path: Mapping[str, str]
    query: Mapping[str, Any]
    """Parameters by name; for an operation that reads them itself, the lists of their values."""
    body: Any = field(default=None, repr=False)
    client: str = ""

    @property
    def means(self) -> Means:
        """What most functions of the API work with."""
        return Means(self.registry.database, self.registry.current(), self.registry.hints.publish)


Handler = Callable[[Call], Awaitable[Json]]


@frozen
class Operation:
    """One line of the table."""

    method: str
    path: str
    """With parameters in braces. `{name}` is a repository's name and may have slashes; all others are one segment."""
    id: str
    """The operationId of the document; unique."""
    summary: str
    right: Right
    handle: Handler
    answer: Json = field(repr=False)
    topic: str = ""
    query: tuple[Parameter, ...] = ()
    reads_itself: bool = False
    """Whether the handler reads the query, because what fits depends on more than the text."""
    body: Json | None = field(default=None, repr=False)
    always: bool = False
    """Whether it goes on in read-only mode although it changes something."""
    status: int = 200
    waits: bool = False
    """Whether it may wait for long, for something other than the database, and takes its turn by itself when it asks that."""
    own_lines: bool = False
    """Whether it writes lines of the audit log itself, because most requests of it change nothing."""

    def read_query(self, given: Mapping[str, tuple[str, ...]]) -> Mapping[str, Any]:
        """Return the parameters of a query. Raises Problem (400) with everything that is wrong."""
        if self.reads_itself:
            return given
        parameters = Parameters(given)
        values = {
            line.name: parameters.required(line.name, line.read)
            if line.required
            else parameters.optional(line.name, line.read, line.default)
            for line in self.query
        }
        parameters.check()
        return values


def count(name: str, least: int, most: int, default: int | None, summary: str = "") -> Parameter:
    """Return a whole number as a parameter."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > 20 or not least <= int(text) <= most:
            raise Unfit(f"write a whole number from {least} to {most}")
        return int(text)

    schema: Json = {"type": "integer", "minimum": least, "maximum": most}
    if default is not None:
        schema["default"] = default
    return Parameter(name, schema, read, default, summary=summary)


def flag(name: str, summary: str = "") -> Parameter:
    """Return a flag as a parameter: `true` or `false`, which is the default."""
    return Parameter(name, {"type": "boolean", "default": False}, parse_flag, False, summary=summary)


def words(name: str, summary: str = "", default: str = "", **more: object) -> Parameter:
    """Return a text as a parameter; `more` are keywords of JSON Schema that only inform."""
    return Parameter(name, {"type": "string", **more}, str, default, summary=summary)


def choice(name: str, options: tuple[str, ...], summary: str = "") -> Parameter:
    """Return a parameter that is one of some words, None without it."""

    def read(text: str) -> str:
        if text not in options:
            raise Unfit(f"write one of {', '.join(options)}")
        return text

    return Parameter(name, {"type": "string", "enum": list(options)}, read, None, summary=summary)


AFTER = words("after", "`next` of the page before.")
N = count("n", 1, 1000, 100, "Entries of a page.")
