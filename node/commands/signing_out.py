"""`antipode logout`, which shares its room with `antipode login`."""

from node.commands.signing_in import logout as command

__all__ = ["command"]
