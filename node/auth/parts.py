"""What a registry with accounts has, made of its configuration."""

from collections.abc import Callable, Sequence

import trio
from attrs import frozen

from node.auth.changes import ChangeLog
from node.auth.credentials import Credentials, Rules
from node.auth.directory import Directory, Remembering
from node.auth.directory_teams import DirectoryTeams
from node.auth.federation import Federation
from node.auth.group_names import service_of
from node.auth.issuers import Issuers
from node.auth.keyring import Keyring
from node.auth.limits import Failures, alone
from node.auth.login_teams import LoginTeams
from node.auth.passwords import Passwords
from node.auth.provider import provider_of
from node.auth.rights import Rights, RightsRules
from node.auth.sealing import Sealer
from node.auth.shared_limits import shared_counts
from node.auth.sign_in import SignIn
from node.auth.team_sync import TeamSync
from node.auth.tokens import Tokens
from node.config.settings import FederationRule, Settings
from node.hooks.addresses import networks
from node.records.postgres import Database
from node.records.robot_federation import list_rules
from node.shares import Sources
from node.web.proxies import Proxies
from replication.ports import Publish


@frozen
class Parts:
    """What a registry with accounts has."""

    changes: ChangeLog
    keyring: Keyring
    tokens: Tokens
    credentials: Credentials
    rights: Rights
    teams: DirectoryTeams | None = None
    """The teams that follow the directory's groups, where they do."""
    sign_in: SignIn | None = None
    """How people log in with an identity provider, where there is one."""
    synced: TeamSync | None = None
    """The teams that follow groups, whoever tells of those."""
    login_teams: LoginTeams | None = None
    """Lets people leave their teams whose login is too long ago, where that is so."""


def _directory(settings: Settings) -> Directory | None:
    if settings.ldap is None:
        return None
    # Its library is loaded only where there is a directory: it is large.
    from node.auth.ldap import Ldap

    return Remembering(Ldap(settings.ldap), settings.ldap.fresh, settings.metadata_grace)


def _directory_teams(
    settings: Settings, database: Database, node: str, teams: TeamSync | None
) -> DirectoryTeams | None:
    if settings.ldap is None or teams is None:
        return None
    from node.auth.ldap_groups import LdapGroups

    return DirectoryTeams(teams, LdapGroups(settings.ldap), database, settings.team_resync, settings.team_hold, node)


def _login_teams(settings: Settings, node: str, teams: TeamSync | None) -> LoginTeams | None:
    if settings.oidc is None or teams is None or settings.team_login is None:
        return None
    return LoginTeams(teams, settings.team_login, node)


def _federation(settings: Settings, database: Database, clock: Callable[[], float]) -> Federation | None:
    if not settings.federation and not settings.federation_issuers:
        return None
    issuers = Issuers(networks(settings.webhook_networks), settings.authorities)

    async def more(robot: str) -> Sequence[FederationRule]:
        if not settings.federation_issuers:
            return ()
        return [
            FederationRule(robot, rule.issuer, rule.audience, rule.subject)
            for rule in await list_rules(database, robot)
            # What an operator has taken from the list does not count any more.
            if rule.issuer in settings.federation_issuers
        ]

    return Federation(settings.federation, issuers, clock, more)


def _sign_in(
    settings: Settings,
    database: Database,
    sealer: Sealer,
    clock: Callable[[], float],
    node: str,
    teams: TeamSync | None,
) -> SignIn | None:
    provider = provider_of(settings, clock)
    if provider is None:
        return None
    reserved = frozenset((*settings.superusers, settings.library_namespace))
    sources = Sources(Proxies(settings.edge.trusted_proxies))
    return SignIn(provider, database, sealer, clock, settings.login_token_lifetime, reserved, node, teams, sources)


def make_parts(
    settings: Settings,
    database: Database,
    clock: Callable[[], float],
    passwords: Passwords,
    node: str,
    publish: Publish,
) -> Parts:
    """Return the parts. `clock` in POSIX seconds, `node` this process's id; `publish` tells all nodes what has changed."""
    changes = ChangeLog()
    longest = max(settings.token_lifetime, settings.refresh_token_lifetime)
    assert settings.secret_key is not None  # the configuration demands it where there are accounts
    sealer = Sealer(settings.secret_key)
    keyring = Keyring(database, sealer, longest)
    shared = alone if settings.redis is None else shared_counts(settings.redis).count
    service = service_of(settings)
    synced = None if service is None else TeamSync(service, database, publish)
    teams = _directory_teams(settings, database, node, synced)
    rules = Rules(settings.metadata_staleness, settings.metadata_grace, frozenset(settings.superusers))
    return Parts(
        changes,
        keyring,
        Tokens(keyring, settings.server_hostname, clock),
        Credentials(
            database,
            rules,
            changes,
            Failures(trio.current_time, shared),
            clock,
            passwords,
            directory=_directory(settings),
            federation=_federation(settings, database, clock),
            teams=teams,
            node=node,
        ),
        Rights(
            database,
            RightsRules(
                settings.metadata_staleness,
                settings.metadata_grace,
                settings.library_namespace,
                settings.superusers_full_access,
            ),
            changes,
        ),
        teams,
        _sign_in(settings, database, sealer, clock, node, synced),
        synced,
        _login_teams(settings, node, synced),
    )
