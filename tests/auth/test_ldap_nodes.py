"""A real node that follows a directory's groups by itself, and the command line that tells it to."""

import httpx

from tests.auth.people import basic
from tests.auth.slapd import PASSWORD_THERE, Slapd, directory
from tests.auth.test_nodes import PASSWORD, registry, run, run_json
from tests.cluster import StartCluster
from tests.registry.world import until

__all__ = ["directory"]


async def test_a_node_follows_groups(start_cluster: StartCluster, directory: Slapd) -> None:
    """A bound team has the people of its group soon though nobody logs in, shows since when, and is not changed by hand."""
    settings = directory.settings()
    directory.write_group("own", "bob")
    cluster = await registry(
        start_cluster,
        "us eu",
        AUTHENTICATION_TYPE="LDAP",
        LDAP_URI=settings.uri,
        LDAP_BASE_DN=settings.base_dn,
        LDAP_USER_RDN=settings.user_rdn,
        LDAP_ADMIN_DN=settings.admin_dn,
        LDAP_ADMIN_PASSWD=settings.admin_password,
        FEATURE_TEAM_SYNCING=True,
    )
    await run(cluster, "user", "create", "chief", "--superuser", "--password-stdin", given=f"{PASSWORD}\n")
    await run(cluster, "org", "create", "acme", "--admin", "chief")
    await run(cluster, "team", "set", "acme", "devs")
    node = cluster["us"]
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        for name in ("alice", "bob"):
            headers = {"authorization": basic(name, PASSWORD_THERE)}
            assert (await client.get(f"{node.url}/v2/auth", headers=headers)).status_code == 200
    await run(cluster, "team", "add", "acme", "devs", "alice")
    assert "there is no cn=none" in await run(
        cluster, "team", "sync", "acme", "devs", "--group", "cn=none,ou=groups", code=1
    )
    bound = await run_json(cluster, "team", "sync", "acme", "devs", "--group", "cn=own,ou=groups")
    assert (bound["service"], bound["group"], bound["synced"]) == ("ldap", "cn=own,ou=groups", None)
    await node.stop()
    await node.start()

    async def followed() -> bool:
        members = (await run_json(cluster, "team", "members", "acme", "devs"))["members"]
        return [member["name"] for member in members] == ["bob"]

    await until(followed, 60)
    (listed,) = [line for line in (await run_json(cluster, "team", "list", "acme"))["teams"] if line["name"] == "devs"]
    assert listed["synced"] is not None
    for verb in ("add", "remove"):
        said = await run(cluster, "team", verb, "acme", "devs", "alice" if verb == "add" else "bob", code=1)
        assert "antipode team unsync acme devs" in said
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        health = (await client.get(f"{node.url}/health/instance")).json()
    assert health["data"]["services"]["service_team sync"] is True
    await run(cluster, "team", "unsync", "acme", "devs")
    await run(cluster, "team", "remove", "acme", "devs", "bob")
