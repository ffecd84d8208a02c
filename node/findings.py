"""What a repair or a rescue tells an operator, thing by thing, as it finds it."""

from collections.abc import Callable

from attrs import frozen


@frozen
class Finding:
    """One thing that was found. `text` says the rest for people.

    `kind`: gone, adopted, unknown, lost, unreachable, damaged (an object of the journal), missing (a manifest that no store has),
    untagged (a manifest that the journals do not know yet: its tag, if it had one, is not known either) or marker (that of a
    location which came after the backup).
    """

    kind: str
    location: str | None
    what: str
    """A digest, or the key of an object; of an unreachable location, why."""
    text: str = ""


Tell = Callable[[Finding], None]
