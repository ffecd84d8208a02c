"""Who we are compared with: pinned versions, built once, run on the same gateway with redirects on where they can."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml
from attrs import field, frozen

from tests.conformance.run import cache_folder
from tests.services import Store

_BUILD_SECONDS = 1800


def say(text: str) -> None:
    """Tell the terminal how far it is."""
    print(text, file=sys.stderr, flush=True)


@frozen
class Program:
    """A Go program at a pinned version."""

    name: str
    module: str
    version: str
    binary: str
    environment: Mapping[str, str] = field(factory=dict)

    def built(self) -> Path | None:
        """Return the program, built at first use; where that fails say why and return None."""
        folder = cache_folder() / "peers" / f"{self.name}-{self.version}"
        program = folder / self.binary
        if program.exists():
            return program
        go = shutil.which("go", path=os.environ.get("PATH", "") + ":/usr/local/go/bin")
        if go is None:
            say(f"SKIPPED {self.name}: no go on the PATH to build {self.module}@{self.version} with")
            return None
        say(f"building {self.module}@{self.version} (minutes, once)")
        environment = {
            **os.environ,
            "GOBIN": str(folder),
            "GOFLAGS": "-buildvcs=false",
            "GOWORK": "off",
            "CGO_ENABLED": "0",
        }
        words = [go, "install", f"{self.module}@{self.version}"]
        try:
            done = subprocess.run(
                words, env={**environment, **self.environment}, timeout=_BUILD_SECONDS, capture_output=True, check=False
            )
        except subprocess.TimeoutExpired:
            say(f"SKIPPED {self.name}: it was not built within {_BUILD_SECONDS} s")
            return None
        if done.returncode:
            say(f"SKIPPED {self.name}: {' '.join(words)} failed:\n{done.stderr.decode(errors='replace')[-800:]}")
            return None
        return program


DISTRIBUTION = Program("distribution", "github.com/distribution/distribution/v3/cmd/registry", "v3.1.1", "registry")
ZOT = Program("zot", "zotregistry.dev/zot/v2/cmd/zot", "v2.1.20", "zot", {"GOEXPERIMENT": "jsonv2"})


def distribution_words(program: Path, folder: Path, port: int, store: Store, path: str, *, redirect: bool) -> list[str]:
    """Write the configuration of distribution and return how to start it: its descriptors in memory, no access log."""
    file = folder / "distribution.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "version": 0.1,
                "log": {"accesslog": {"disabled": True}, "level": "error"},
                "storage": {
                    "s3": {
                        "accesskey": store.access_key,
                        "secretkey": store.secret_key,
                        "region": "us-east-1",
                        "regionendpoint": store.endpoint,
                        "forcepathstyle": True,
                        "bucket": store.bucket,
                        "secure": False,
                        "rootdirectory": f"{path}/distribution",
                    },
                    "cache": {"blobdescriptor": "inmemory"},
                    "redirect": {"disable": not redirect},
                    "maintenance": {"uploadpurging": {"enabled": False}},
                },
                "http": {"addr": f"127.0.0.1:{port}"},
            }
        )
    )
    return [str(program), "serve", str(file)]


def zot_words(program: Path, folder: Path, port: int, store: Store, path: str, *, redirect: bool) -> list[str]:
    """Write the configuration of zot and return how to start it: without extensions, deduplication or collection."""
    file = folder / "zot.json"
    file.write_text(
        json.dumps(
            {
                "distSpecVersion": "1.1.1",
                "storage": {
                    "rootDirectory": str(folder / "zot"),
                    "dedupe": False,
                    "gc": False,
                    "redirectBlobURL": redirect,
                    "storageDriver": {
                        "name": "s3",
                        "rootdirectory": f"{path}/zot",
                        "region": "us-east-1",
                        "regionendpoint": store.endpoint,
                        "bucket": store.bucket,
                        "forcepathstyle": True,
                        "secure": False,
                        "skipverify": True,
                        "accesskey": store.access_key,
                        "secretkey": store.secret_key,
                    },
                },
                "http": {"address": "127.0.0.1", "port": str(port)},
                "log": {"level": "error"},
            }
        )
    )
    return [str(program), "serve", str(file)]
