"""Changing a namespace's policy: what that would copy and trim, and the change itself with its consequences set going."""

from collections.abc import Mapping

from attrs import evolve, field, frozen

from node.records.policies import write_policy
from node.records.postgres import Database
from node.records.previews import namespace_tags, preview_facts
from node.records.reconcile import ask_for_round
from replication.policy import Policy
from replication.ports import Forget, Publish
from replication.reconcile import settle

_PAGE = 500
_TAGS = 5000


@frozen
class Amount:
    """So many blobs, so many bytes."""

    blobs: int = 0
    size: int = 0

    def more(self, size: int) -> "Amount":
        """Return it with one more blob of `size` bytes."""
        return Amount(self.blobs + 1, self.size + size)


@frozen
class Preview:
    """What a policy would change, by location; `blobs` of the namespace were looked at."""

    blobs: int = 0
    copies: Mapping[str, Amount] = field(factory=dict)
    """What would have to be copied there."""
    trims: Mapping[str, Amount] = field(factory=dict)
    """What would go from there once all debt is paid."""


async def preview(database: Database, namespace: str, policy: Policy, *, replicate: bool) -> Preview:
    """Return what would be copied and trimmed if this were a namespace's policy. Changes nothing. Raises LedgerUnavailable."""
    tags = await _matching_tags(database, namespace, policy) if policy.tags else []
    copies: dict[str, Amount] = {}
    trims: dict[str, Amount] = {}
    blobs, after = 0, 0
    while True:
        page = await preview_facts(database, namespace, policy, tags, after, _PAGE)
        for candidate in page.candidates:
            blobs += 1
            facts = candidate.facts
            made = settle(facts, replicate=replicate)
            for at in made.owe:
                copies[at] = copies.get(at, Amount()).more(candidate.size)
            # As it will be when everything is paid.
            paid = dict.fromkeys((*made.owe, *(at for at in facts.tasks if at in facts.required)), True)
            later = settle(evolve(facts, placed={**facts.placed, **paid}, tasks={}), replicate=replicate)
            for at in later.trim:
                trims[at] = trims.get(at, Amount()).more(candidate.size)
        if page.last is None:
            return Preview(blobs, copies, trims)
        after = page.last


async def _matching_tags(database: Database, namespace: str, policy: Policy) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    after = (0, "")
    while tags := await namespace_tags(database, namespace, after, _TAGS):
        found += [tag for tag in tags if policy.for_tag(tag[1])]
        after = tags[-1]
    return found


async def change_policy(
    database: Database, publish: Publish, namespace: str, policy: Policy, expected: int | None = None
) -> int | None:
    """Set a namespace's policy, and make the nodes compile its tags, copy and trim at once; return the new version.

    `NO_POLICY` removes it. None: `expected` is not its version any more, and nothing was changed. Raises LedgerUnavailable.
    """
    version = await write_policy(database, namespace, policy, expected)
    if version is not None:
        await ask_for_round(database)
        publish(Forget())
    return version
