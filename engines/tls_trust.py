"""What clients of TLS ask of a certificate here: the same on every Python.

From 3.13 on Python has OpenSSL refuse what RFC 5280 forbids, such as an authority that does not say what its key may be used for.
Authorities that companies have made for themselves are often like that, and no node shall lose its stores by a newer Python.
Whose signature counts, which names a certificate has and how long it is valid is checked all the same.
"""

import ssl
from pathlib import Path

NOT_ASKED = (ssl.VerifyFlags.VERIFY_X509_STRICT, ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN)
"""What Python 3.13 has set and those before it have not. The second one makes an authority below another one trusted by itself."""


def trusting(authorities: str | Path | None = None) -> ssl.SSLContext:
    """Return a client's context that checks names and certificates, by a file of authorities, or the system's. Raises OSError."""
    context = ssl.create_default_context(cafile=authorities)
    for flag in NOT_ASKED:
        context.verify_flags &= ~flag
    return context
