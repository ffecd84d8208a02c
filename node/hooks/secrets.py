"""How webhooks' secrets are kept: encrypted under DATABASE_SECRET_KEY where the registry has one."""

from functools import partial

from node.auth import sealing
from node.auth.sealing import Sealed

__all__ = ["Sealed", "keep_secret", "open_secret"]

_CONTEXT = "webhook"

keep_secret = partial(sealing.keep_secret, context=_CONTEXT)
open_secret = partial(sealing.open_secret, context=_CONTEXT)
