"""Rules by which tokens of identity providers count for a robot: listed, made, taken away by whoever administers its namespace."""

from collections.abc import Mapping

from node.api.frame import Json, Problem, Wrong, timestamp
from node.api.tags import Means
from node.auth.changes import ACCESS_CHANGED
from node.auth.model import Kind
from node.config.federation import refuse
from node.config.settings import Settings
from node.config.values import show
from node.records.accounts import find_account
from node.records.robot_federation import MOST, Rule, add_rule, list_rules, remove_rule


async def get_federation(means: Means, robot: str) -> Json:
    """Return a robot's rules, those of the configuration first. Raises Problem (404)."""
    await _find(means, robot)
    configured: list[Json] = [
        {
            "id": None,
            "issuer": rule.issuer,
            "audience": rule.audience,
            "subject": rule.subject,
            "created": None,
            "counts": True,
        }
        for rule in means.settings.federation
        if rule.robot == robot
    ]
    return {"rules": configured + [_line(rule, means.settings) for rule in await list_rules(means.database, robot)]}


async def add_federation(means: Means, robot: str, body: Mapping[str, object]) -> Json:
    """Make a rule: `issuer`, `subject`, and `audience` (else SERVER_HOSTNAME). Raises Problem: 400, 403, 404, 409."""
    await _find(means, robot)
    settings = means.settings
    texts = {name: str(body.get(name, settings.server_hostname)) for name in ("issuer", "audience", "subject")}
    wrong = tuple(
        Wrong(name, show(text), right) for name, text in texts.items() if (right := refuse(name, text)) is not None
    )
    if wrong:
        detail = "; ".join(f"{line.field}: {line.right}" for line in wrong)
        raise Problem(400, "a rule that cannot be used", detail, wrong=wrong)
    if texts["issuer"] not in settings.federation_issuers:
        allowed = ", ".join(settings.federation_issuers) or "none"
        raise Problem(
            403,
            "an issuer that is not allowed",
            f"{texts['issuer'][:300]} is not in ROBOT_FEDERATION_ISSUERS, where the registry's operator has: {allowed}",
        )
    made = await add_rule(means.database, robot, texts["issuer"], texts["audience"], texts["subject"])
    if made is None:
        raise Problem(409, "too many rules", f"a robot may have {MOST}")
    return _line(made, settings)


async def remove_federation(means: Means, robot: str, rule: str) -> Json:
    """Take a rule away by its id; what it bought is void at once. Raises Problem (404)."""
    known = rule.isascii() and rule.isdigit() and len(rule) < 19
    if not known or not await remove_rule(means.database, robot, int(rule)):
        raise Problem(404, "no such rule", f"{robot[:255]} has none of the id {rule[:80]}")
    means.publish(ACCESS_CHANGED)
    return {"id": int(rule), "deleted": True}


async def _find(means: Means, robot: str) -> None:
    found = await find_account(means.database, robot)
    if found is None or found.kind is not Kind.ROBOT:
        raise Problem(404, "no such robot", robot[:255])


def _line(rule: Rule, settings: Settings) -> Json:
    return {
        "id": rule.id,
        "issuer": rule.issuer,
        "audience": rule.audience,
        "subject": rule.subject,
        "created": timestamp(rule.created_at),
        "counts": rule.issuer in settings.federation_issuers,
    }
