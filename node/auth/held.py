"""By which rights a request was admitted, so that the statement that does it can tell whether they still hold."""

from attrs import frozen


@frozen
class Held:
    """The rights by which a request was admitted: they hold until something takes any from the account, or on the repository."""

    account: str
    epoch: int
    """How far the access log was when they were read."""
    until: float
    """POSIX seconds: when what proved them ends."""
