"""An authority of the test's own, and certificates that it signs: made by the real openssl program."""

import subprocess
from pathlib import Path

from attrs import frozen

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@frozen
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


@frozen
class Authority:
    """Signs certificates. Everything is in one folder."""

    folder: Path
    own: Pair

    @classmethod
    def make(cls, folder: Path, *, old: bool = False) -> "Authority":
        """Return a new authority; an `old` one says as little about itself as many that companies once made do."""
        folder.mkdir(parents=True, exist_ok=True)
        own = Pair(folder / "ca.crt", folder / "ca.key")
        says = (
            ["basicConstraints=CA:TRUE"]
            if old
            else ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
        )
        usage = [word for extension in says for word in ("-addext", extension)]
        _openssl("req", "-x509", *_CURVE, "-days", "2", "-subj", "/CN=a test's authority", *usage,
                 "-keyout", own.key, "-out", own.certificate)  # fmt: skip
        return cls(folder, own)

    def sign(self, name: str, subject: str = "127.0.0.1", names: str = "IP:127.0.0.1,DNS:localhost") -> Pair:
        """Return a new certificate and key in files called `name`, in place of what was there."""
        made, request = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key"), self.folder / f"{name}.csr"
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl("req", *_CURVE, "-subj", f"/CN={subject}", "-keyout", made.key, "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.own.certificate, "-CAkey", self.own.key, "-CAcreateserial",
                 "-days", "2", "-extfile", extensions, "-out", made.certificate)  # fmt: skip
        return made


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
