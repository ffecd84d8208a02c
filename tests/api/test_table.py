"""The table of the API and the document made of it: complete, unambiguous, and what a node serves."""

import re
from collections import Counter

import httpx
import pytest
from jsonschema import Draft202012Validator

from node.api.openapi import PREFIX, document, parameters_of
from node.api.operations import Operation, Right
from node.api.table import OPERATIONS
from tests.cluster import Cluster

_IDS = [operation.id for operation in OPERATIONS]


def test_nothing_stands_twice() -> None:
    """Each operation has an id, and a method and path, of its own."""
    assert max(Counter(_IDS).values()) == 1
    assert max(Counter((operation.method, operation.path) for operation in OPERATIONS).values()) == 1


@pytest.mark.parametrize("operation", OPERATIONS, ids=_IDS)
def test_an_operation_is_described(operation: Operation) -> None:
    """Each operation says what it is for, under a topic; its schemas are JSON Schema; its right is about what its path names."""
    assert re.fullmatch(r"[A-Z].*\.", operation.summary)
    assert operation.topic
    for schema in (operation.answer, operation.body, *(line.schema for line in operation.query)):
        if schema is not None:
            Draft202012Validator.check_schema(schema)
    names = parameters_of(operation.path)
    if operation.right in (Right.PULL, Right.PUSH, Right.DELETE, Right.ADMIN):
        assert "name" in names
    if operation.right is Right.NAMESPACE:
        assert "namespace" in names
    assert (operation.body is not None) <= (operation.method in ("PUT", "POST", "PATCH"))


@pytest.mark.parametrize("operation", OPERATIONS, ids=_IDS)
def test_a_default_that_is_promised_is_what_happens(operation: Operation) -> None:
    """A parameter's default in the document is the one that the node uses."""
    for line in operation.query:
        if not operation.reads_itself and "default" in line.schema:
            assert line.schema["default"] == line.default


def test_what_somebody_may_change_needs_a_right() -> None:
    """Nothing that changes the registry may be asked by just anybody, but for what makes the first user, and logins."""
    assert {op.id for op in OPERATIONS if op.method != "GET" and op.right is Right.NOTHING} <= {
        "initialize",
        "beginDeviceLogin",
        "beginCodeLogin",
        "finishLogin",
    }


async def test_a_node_serves_the_document_and_every_operation(cluster: Cluster) -> None:
    """A node serves the document, and knows each method of each path in it: none is answered 404 by the router, or 405."""
    async with httpx.AsyncClient(base_url=cluster["us"].url, trust_env=False, timeout=60) as http:
        answer = await http.get(f"{PREFIX}/openapi.json")
        assert answer.status_code == 200
        served = answer.json()
        assert served == document(OPERATIONS, served["info"]["version"])
        for operation in OPERATIONS:
            other = "PATCH" if operation.method != "PATCH" else "POST"
            path = PREFIX + re.sub(r"\{\w+\}", "nobody", operation.path)
            allowed = (await http.request(other, path)).headers.get("allow", "")
            assert operation.method in allowed, operation.id


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/location/us/state", '{"state": "asleep"}', "state"),
        ("/location/us/state", "{}", "body"),
        ("/location/us/state", '{"state": "active", "why": "I can"}', "body"),
        ("/namespace/team/quota", '{"reject": true}', "reject"),
        ("/namespace/team/quota", '{"reject": "\\u0000"}', "body"),
        ("/location/us/state", '{"state": NaN}', None),
        ("/location/us/state", "[" * 60_000, None),
        ("/location/us/state", "", None),
    ],
)
async def test_a_body_that_does_not_fit(cluster: Cluster, path: str, body: str, field: str | None) -> None:
    """A body that does not fit is a problem that names each place, what is there and what would be right."""
    async with httpx.AsyncClient(base_url=cluster["us"].url, trust_env=False, timeout=60) as http:
        answer = await http.put(PREFIX + path, content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert [wrong["field"] for wrong in answer.json().get("errors", ())] == ([field] if field else [])


@pytest.mark.parametrize("path", ["/namespace/a%00b/quota", "/quota?after=%00", "/location?nonsense=1"])
async def test_what_no_name_has(cluster: Cluster, path: str) -> None:
    """Characters that nothing is named with, and parameters that nobody reads, are the client's mistake."""
    async with httpx.AsyncClient(base_url=cluster["us"].url, trust_env=False, timeout=60) as http:
        answer = await http.get(PREFIX + path)
    assert answer.status_code in (400, 404)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("below", ["tag", "audit", "tag/v1/history", "permission/team/devs/x/audit"])
async def test_what_is_below_a_repository_is_none(cluster: Cluster, repository: str, below: str) -> None:
    """A DELETE of something below a repository that cannot be deleted is refused, and never one of a repository of that name."""
    async with httpx.AsyncClient(base_url=cluster["us"].url, trust_env=False, timeout=60) as http:
        await http.post(f"/v2/{repository}/{below}/blobs/uploads/")
        answer = await http.delete(f"{PREFIX}/repository/{repository}/{below}")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
        assert (await http.get(f"{PREFIX}/namespace/{repository.partition('/')[0]}/repository")).json()["repositories"]
