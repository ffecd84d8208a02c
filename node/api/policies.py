"""A namespace's placement policy: read, checked, previewed, set and removed."""

from attrs import frozen

from node.api.frame import Json, Problem, Wrong
from node.names import is_name
from node.policies import Preview, change_policy, preview
from node.records.locations import list_locations
from node.records.policies import list_policies, read_policy
from node.records.postgres import Database
from replication.durable import refusal
from replication.model import LocationState
from replication.policy import NO_POLICY, Policy, PolicyInvalid, dump_policy, parse_policy
from replication.ports import Publish


@frozen
class Request:
    """A policy to be set: `document` of None removes it; `dry_run` changes nothing; `expected` is the version it must have now."""

    namespace: str
    document: object | None
    dry_run: bool = False
    expected: int | None = None


async def get_policy(database: Database, namespace: str) -> Json:
    """Return a namespace's policy and its version. Raises Problem."""
    _check(namespace)
    row = await read_policy(database, namespace)
    return {"namespace": namespace, "policy": dump_policy(row.policy), "version": row.version}


async def get_policies(database: Database) -> Json:
    """Return every policy that is not empty."""
    rows = await list_policies(database)
    return {
        "policies": [
            {"namespace": row.namespace, "policy": dump_policy(row.policy), "version": row.version} for row in rows
        ]
    }


async def set_policy(database: Database, publish: Publish, request: Request, *, replicate: bool) -> Json:
    """Set or remove a policy, and return it with what is copied and trimmed because of it.

    Raises Problem: 400 with everything that is wrong with it, 409 when it has another version than was expected.
    """
    _check(request.namespace)
    policy = NO_POLICY if request.document is None else await _parse(database, request.document)
    shown = await preview(database, request.namespace, policy, replicate=replicate)
    version = (await read_policy(database, request.namespace)).version
    if not request.dry_run:
        changed = await change_policy(database, publish, request.namespace, policy, request.expected)
        if changed is None:
            raise Problem(409, "the policy has changed", f"it has version {version} now, not {request.expected}")
        version = changed
    return {
        "namespace": request.namespace,
        "policy": dump_policy(policy),
        "version": version,
        "dry_run": request.dry_run,
        **describe(shown),
    }


def describe(shown: Preview) -> Json:
    """Return a preview as JSON."""
    return {
        "blobs": shown.blobs,
        "copies": {at: {"blobs": amount.blobs, "bytes": amount.size} for at, amount in sorted(shown.copies.items())},
        "trims": {at: {"blobs": amount.blobs, "bytes": amount.size} for at, amount in sorted(shown.trims.items())},
    }


async def _parse(database: Database, document: object) -> Policy:
    states = {line.name: line.state for line in await list_locations(database)}
    try:
        policy = parse_policy(document, [name for name, state in states.items() if state is not LocationState.REMOVED])
    except PolicyInvalid as error:
        wrong = tuple(Wrong(problem.partition(":")[0], "what cannot be obeyed", problem) for problem in error.problems)
        raise Problem(400, "the policy cannot be obeyed", str(error), wrong=wrong) from None
    # Every push would be refused. A policy that was set stays one when a location goes: this is asked here alone.
    if (reason := refusal(policy.durability, states, policy.never)) is not None:
        wrong = (Wrong("durability", str(policy.durability), reason),)
        raise Problem(400, "the policy cannot be obeyed", f"durability: {reason}", wrong=wrong)
    return policy


def _check(namespace: str) -> None:
    if not is_name(namespace) or "/" in namespace:
        raise Problem(400, "not a namespace", f"{namespace[:100]!r}: the first part of a repository's name is needed")
