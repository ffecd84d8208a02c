"""Who may know whom: the imports of the tree, and what a pure room may not touch."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.services import repository_root

# Each may import those after it, never one before.
LAYERS = ("node", "replication", "engines")
PURE = (
    *(f"replication/{name}.py" for name in ("model", "sources", "targets", "policy", "health", "plan")),
    *(f"replication/{name}.py" for name in ("closure", "arrival", "durable", "throughput", "reconcile", "hedging")),
    "engines/presign.py",
)
CROSSINGS = frozenset({"engines/crossing.py", "engines/pump.py", "engines/s3_library.py", "node/hints.py"}) | {
    "node/records/dial.py",
    "node/records/pool.py",
    "node/records/postgres.py",
}
# Libraries that need asyncio's loop, or are the bridge to it.
ASYNCIO = frozenset({"asyncio", "trio_asyncio", "aioboto3", "aiobotocore", "aiohttp", "asyncpg"})
# What gives a decision a clock, randomness or the outside world.
IMPURE = frozenset(
    {
        *ASYNCIO,
        *("trio", "anyio", "httpx", "redis", "quart", "hypercorn", "structlog", "logging", "boto3", "botocore"),
        *("time", "random", "secrets", "uuid", "os", "io", "sys", "pathlib", "shutil", "tempfile", "glob", "fcntl"),
        *("socket", "ssl", "select", "selectors", "signal", "subprocess", "threading", "multiprocessing", "queue"),
        *("concurrent", "contextvars", "http", "ftplib", "sqlite3"),
    }
)
_CLOCK_READS = frozenset({"now", "utcnow", "today"})
_DOORS = frozenset({"open", "print", "input", "exec", "eval", "__import__", "breakpoint"})


@frozen
class Found:
    """Something that may not be there."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def imports(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every module that is imported, wherever in the file, relative ones resolved."""
    package = list(Path(path).with_suffix("").parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield node.lineno, ".".join([*base, *([node.module] if node.module else [])])


def against_arrows(source: str, path: str) -> list[Found]:
    """Return the imports that point from a room to one that stands before it."""
    layer = path.split("/")[0]
    forbidden = {*LAYERS[: LAYERS.index(layer)], "tests", "property_tests", "scripts"}
    return [
        Found(path, line, f"imports {name}: {layer} may not know it")
        for line, name in imports(ast.parse(source), path)
        if name.split(".")[0] in forbidden
    ]


def against_crossings(source: str, path: str) -> list[Found]:
    """Return what speaks asyncio outside the modules that hide it."""
    if path in CROSSINGS:
        return []
    tree = ast.parse(source)
    found = [
        Found(path, line, f"imports {name}: asyncio is met only in {', '.join(sorted(CROSSINGS))}")
        for line, name in imports(tree, path)
        if name.split(".")[0] in ASYNCIO or name.startswith("redis.asyncio")
    ]
    # `from redis import asyncio` names it second.
    found += [
        Found(path, node.lineno, f"imports asyncio from {node.module}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "asyncio" for alias in node.names)
    ]
    return found


def impurities(source: str, path: str) -> list[Found]:
    """Return what a pure room may not have: waiting, a clock, randomness, the outside world."""
    tree = ast.parse(source)
    found = [
        Found(path, line, f"imports {name}: not pure")
        for line, name in imports(tree, path)
        if name.split(".")[0] in IMPURE
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(Found(path, node.lineno, "waits: not pure"))
        elif isinstance(node, ast.Attribute) and node.attr in _CLOCK_READS and "date" in ast.unparse(node.value):
            found.append(Found(path, node.lineno, f"reads the clock: {ast.unparse(node)}"))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _DOORS:
            found.append(Found(path, node.lineno, f"calls {node.func.id}: not pure"))
    return found


def closure(path: str, root: Path) -> set[str]:
    """Return `path` and every file of the tree that it imports, directly or through others."""
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        tree = ast.parse((root / here).read_text())
        names = [name for _, name in imports(tree, here)]
        # `from replication import model` names the module second.
        names += [
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        ]
        for name in names:
            place = name.replace(".", "/")
            waiting += [file for file in (f"{place}.py", f"{place}/__init__.py") if (root / file).is_file()]
    return seen


def files() -> list[str]:
    """Return the path of every Python file of the product."""
    root = repository_root()
    return sorted(str(file.relative_to(root)) for layer in LAYERS for file in (root / layer).rglob("*.py"))


@pytest.mark.parametrize("path", files())
def test_imports_follow_the_arrows(path: str) -> None:
    """The node knows replication, replication knows engines, and nobody looks back."""
    source = (repository_root() / path).read_text()
    assert [str(found) for found in against_arrows(source, path)] == []


@pytest.mark.parametrize("path", files())
def test_asyncio_lives_behind_the_crossing(path: str) -> None:
    """Seven modules meet asyncio and the libraries that need it, and nothing else does."""
    source = (repository_root() / path).read_text()
    assert [str(found) for found in against_crossings(source, path)] == []


@pytest.mark.parametrize("path", PURE)
def test_a_pure_room_decides_and_does_nothing_else(path: str) -> None:
    """A decision has no async, clock, randomness or I/O; nor has anything in the tree that it imports."""
    root = repository_root()
    found = [str(item) for file in sorted(closure(path, root)) for item in impurities((root / file).read_text(), file)]
    assert found == []


@pytest.mark.parametrize("path", files())
def test_a_module_says_what_it_is_for(path: str) -> None:
    """The first line of a module is its purpose."""
    assert ast.get_docstring(ast.parse((repository_root() / path).read_text())), f"{path} has no docstring"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engines/s3.py", "import replication.model"),
        ("engines/s3.py", "from node import settings"),
        ("replication/plan.py", "def late():\n    from node.records import blobs"),
        ("node/pull/blobs.py", "import tests.services"),
        ("replication/reader.py", "from ..node import cache"),
    ],
)
def test_an_import_against_the_arrows_is_seen(path: str, source: str) -> None:
    """The rule finds what breaks it, also inside a function and through a relative import."""
    assert against_arrows(source, path)


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "from asyncio import sleep",
        "import asyncpg.pool",
        "import redis.asyncio",
        "from redis import asyncio",
    ],
)
def test_asyncio_elsewhere_is_seen(source: str) -> None:
    """The rule finds every way to name it, and leaves the crossings alone."""
    assert against_crossings(source, "node/cache.py")
    assert not against_crossings(source, "node/hints.py")


@pytest.mark.parametrize(
    "source",
    [
        "async def choose(): ...",
        "import time",
        "from time import monotonic",
        "from datetime import datetime\nnow = datetime.now()",
        "import datetime\nnow = datetime.datetime.utcnow()",
        "from datetime import date\nday = date.today()",
        "import random",
        "from secrets import token_hex",
        "import uuid",
        "import trio",
        "text = open('file').read()",
        "from pathlib import Path",
        "def choose():\n    import os",
    ],
)
def test_an_impurity_is_seen(source: str) -> None:
    """The rule finds every kind of what a pure room may not have."""
    assert impurities(source, "replication/plan.py")


def test_a_pure_decision_is_left_alone() -> None:
    """What decisions are made of is allowed: values, sorting, datetimes that are given."""
    source = """
from datetime import datetime, timedelta

def late(now: datetime, then: datetime) -> bool:
    return now - then > timedelta(1)
"""
    assert impurities(source, "replication/plan.py") == []
    assert against_arrows("from engines.contract import Engine\nimport attrs", "replication/plan.py") == []


def test_every_migration_has_a_number_of_its_own() -> None:
    """Two that were numbered side by side make no database: here, as this is asked of every change."""
    names = sorted(path.name for path in (repository_root() / "node" / "records" / "schema").glob("*.sql"))
    assert len({name[:4] for name in names}) == len(names), names
