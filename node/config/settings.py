"""The configuration as a value: frozen, complete, checked. `load.py` makes it from the YAML file and the environment.

Keys that Quay knows have Quay's names and meanings (noted per field); the rest is this registry's own, in the same style.
"""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from attrs import Factory, field, frozen

from engines import EngineSpec

MIB = 1 << 20
CLOCKS_APART = 900.0
"""Seconds by which a signer's clock may differ from a store's: with more it takes no signature (S3: RequestTimeTooSkewed)."""


@frozen
class LocationSettings:
    """One entry of DISTRIBUTED_STORAGE_CONFIG."""

    name: str
    engine: EngineSpec
    redirect: bool = True
    """Whether pulls may be redirected to this store's presigned URLs (also needs an engine that presigns)."""


@frozen
class RedisSettings:
    """USER_EVENTS_REDIS, else BUILDLOGS_REDIS."""

    host: str
    port: int = 6379
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: bool = False
    ca_file: str | None = None


@frozen
class SpoolSettings:
    """A folder for bytes on their way: `path` (None: the system's temporary one) and how many bytes it may hold, 0 for none."""

    path: Path | None = None
    most: int = 1 << 30


@frozen
class TlsSettings:
    """SSL_CERTIFICATE, SSL_CERTIFICATE_KEY, SSL_PROTOCOLS, SSL_CIPHERS and SSL_CIPHERSUITES."""

    certificate: Path
    key: Path
    protocols: tuple[str, ...] = ("TLSv1.2", "TLSv1.3")
    ciphers: str = "ECDHE+AESGCM:ECDHE+CHACHA20"
    """For TLS 1.2, as OpenSSL writes them."""
    suites: tuple[str, ...] = ()
    """For TLS 1.3, the preferred one first; empty: OpenSSL's own with AES-128-GCM first."""


CONNECTIONS_OVER_TLS = 1280
"""MAXIMUM_CONNECTIONS by default where the node ends TLS itself: each takes 29 KiB then, and full caches shall fit beside."""


@frozen
class EdgeSettings:
    """Who ends TLS, and who may say where a connection comes from."""

    tls: TlsSettings | None = None
    """None: the listener speaks plain HTTP."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """TRUSTED_PROXY_CIDR."""
    proxy_protocol: bool = False
    """FEATURE_PROXY_PROTOCOL: connections from trusted proxies begin with a PROXY header."""


@frozen
class FederationRule:
    """Which tokens of an identity provider count for a robot."""

    robot: str
    """Its whole name, `owner+name`."""
    issuer: str
    """The provider, as its tokens have it in `iss`."""
    audience: str
    """What must be in `aud`."""
    subject: str
    """What `sub` must be; a star stands for any characters, or none."""


@frozen
class LdapSettings:
    """An LDAP directory, and how people are found in it. Durations in seconds."""

    uri: str
    """LDAP_URI."""
    host: str
    port: int
    base_dn: str
    """LDAP_BASE_DN."""
    admin_dn: str
    """LDAP_ADMIN_DN."""
    admin_password: str = field(repr=False)
    """LDAP_ADMIN_PASSWD."""
    secure: bool = False
    """The scheme is ldaps."""
    start_tls: bool = False
    """LDAP_START_TLS."""
    ca_file: str | None = None
    """Trusted authorities; None: the system's."""
    user_rdn: str | None = None
    """LDAP_USER_RDN."""
    uid_attribute: str = "uid"
    """LDAP_UID_ATTR."""
    email_attribute: str = "mail"
    """LDAP_EMAIL_ATTR."""
    user_filter: str = ""
    """LDAP_USER_FILTER: what must be true of people besides their name."""
    superuser_filter: str | None = None
    """LDAP_SUPERUSER_FILTER."""
    memberof_attribute: str = "memberOf"
    """LDAP_MEMBEROF_ATTR: what of somebody's entry names the groups that they are in, where the directory has that."""
    nested_groups: bool = False
    """LDAP_NESTED_GROUPS: whether whoever is in a group is in those that it is in, too."""
    timeout: float = 10.0
    """LDAP_TIMEOUT: how long a login waits for the directory."""
    fresh: float = 60.0
    """LDAP_CACHE_TTL: how long a right password counts without asking again."""

    @property
    def base(self) -> str:
        """What people are searched below."""
        return self.base_dn if self.user_rdn is None else f"{self.user_rdn},{self.base_dn}"


@frozen
class OidcSettings:
    """An identity provider, and how this registry is its client: a <NAME>_LOGIN_CONFIG."""

    name: str
    """That name, in lower case."""
    server: str
    """OIDC_SERVER: where its description is found."""
    issuer: str
    """OIDC_ISSUER, else the same: what it calls itself."""
    client_id: str
    """CLIENT_ID."""
    client_secret: str | None = field(default=None, repr=False)
    """CLIENT_SECRET; None: a public client."""
    service_name: str = "the identity provider"
    """SERVICE_NAME: what people call it."""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    """LOGIN_SCOPES."""
    username_claim: str | None = None
    """PREFERRED_USERNAME_CLAIM_NAME."""
    email_claim: str | None = None
    """VERIFIED_EMAIL_CLAIM_NAME."""
    user_endpoint: bool = True
    """Not OIDC_DISABLE_USER_ENDPOINT: whether it may be asked for what the ID token lacks: the name, the groups."""
    group_claim: str | None = None
    """PREFERRED_GROUP_CLAIM_NAME: what has the groups that decide who is in a team."""
    silence_is_none: bool = False
    """MISSING_GROUP_CLAIM_MEANS_NONE: whether somebody is in no group of whom the provider says none."""


@frozen
class Settings:
    """Everything a node needs to know before it starts. Durations in seconds, sizes in bytes."""

    server_hostname: str
    """SERVER_HOSTNAME."""
    database_uri: str = field(repr=False)
    """DB_URI."""
    locations: Mapping[str, LocationSettings]
    """DISTRIBUTED_STORAGE_CONFIG, in the file's order."""
    preference: tuple[str, ...]
    """DISTRIBUTED_STORAGE_PREFERENCE, or the environment's; the first is this node's preferred store."""
    default_locations: tuple[str, ...]
    """DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS; where that is absent or empty, every location (start-up says so)."""
    scheme: str = "https"
    """PREFERRED_URL_SCHEME."""
    edge: EdgeSettings = EdgeSettings()
    redis: RedisSettings | None = None
    replicate: bool = False
    """FEATURE_STORAGE_REPLICATION."""
    proxy_storage: bool = False
    """FEATURE_PROXY_STORAGE: stream every blob, never redirect."""
    open_registry: bool = False
    """FEATURE_OPEN_REGISTRY: anyone may do anything, and there are no accounts."""
    authentication_type: str = "Database"
    """AUTHENTICATION_TYPE: who proves people's passwords."""
    ldap: LdapSettings | None = None
    """The directory, where that is LDAP."""
    oidc: OidcSettings | None = None
    """The identity provider, where that is OIDC."""
    login_token_lifetime: float = 12 * 3600.0
    """LOGIN_TOKEN_LIFETIME: of the application token that a login with the identity provider gives."""
    team_syncing: bool = False
    """FEATURE_TEAM_SYNCING: groups of the directory or the identity provider may decide who is in a team."""
    admins_sync_teams: bool = False
    """FEATURE_NONSUPERUSER_TEAM_SYNCING_SETUP: an organisation's admins may say which group, too."""
    team_resync: float = 1800.0
    """TEAM_RESYNC_STALE_TIME: how old what the directory said of a team's group may be."""
    team_login: float | None = None
    """TEAM_LOGIN_STALE_TIME: for how long a login is believed that put somebody in a team; None: for ever."""
    team_hold: float = 6 * 3600.0
    """TEAM_RESYNC_HOLD_TIME: for how long a team waits with letting very many people go at once."""
    federation: tuple[FederationRule, ...] = ()
    """ROBOT_FEDERATION."""
    federation_issuers: tuple[str, ...] = ()
    """ROBOT_FEDERATION_ISSUERS: which issuers' tokens the owners of robots may let count for them."""
    secret_key: str | None = field(default=None, repr=False)
    """DATABASE_SECRET_KEY: what the database's secrets are encrypted with; there always is one where there are accounts."""
    superusers: tuple[str, ...] = ()
    """SUPER_USERS, besides those that the database calls so."""
    superusers_full_access: bool = False
    """FEATURE_SUPERUSERS_FULL_ACCESS: superusers may do anything to every repository."""
    superusers_make_organizations: bool = False
    """FEATURE_SUPERUSERS_ORG_CREATION_ONLY: other users make no organisations by the API."""
    anonymous_access: bool = True
    """FEATURE_ANONYMOUS_ACCESS: nobody in particular may pull from public repositories."""
    private_on_push: bool = True
    """CREATE_PRIVATE_REPO_ON_PUSH."""
    token_lifetime: float = 900.0
    """TOKEN_LIFETIME: of the tokens that clients show with their requests."""
    refresh_token_lifetime: float = 30 * 86400.0
    """REFRESH_TOKEN_LIFETIME: of the tokens that a login leaves with a client that asks for one."""
    registry_state: str = "normal"
    """REGISTRY_STATE: `normal`, or `readonly`: nothing changes what the registry holds."""
    disable_pushes: bool = False
    """DISABLE_PUSHES: no pushes and mounts; deletes and administration go on."""
    default_quota: int = 0
    """DEFAULT_SYSTEM_REJECT_QUOTA_BYTES: what a namespace without a quota of its own may hold; 0 for any amount."""
    audit_pulls: bool = True
    """AUDIT_PULLS: whether the audit log has pulls of manifests, too."""
    audit_retention: float = 30 * 86400.0
    """ACTION_LOG_ROTATION_THRESHOLD: how long lines of the audit log are kept."""
    webhook_networks: tuple[str, ...] | None = None
    """WEBHOOK_ALLOWED_NETWORKS: networks that are not public and that webhooks may be in all the same."""
    authorities: Path | None = None
    """EXTRA_CA_CERTS: a PEM file with the system's authorities and the extra ones; None where there are no extra ones."""
    sparse_index: bool = False
    """FEATURE_SPARSE_INDEX: accept an index whose children are missing."""
    allow_local_replication: bool = False
    """ALLOW_LOCAL_REPLICATION: accept LocalStorage with replication, for one machine that plays several regions."""
    library_namespace: str = "library"
    """LIBRARY_NAMESPACE."""
    page_size: int = 100
    """V2_PAGINATION_SIZE."""
    maximum_layer_size: int = 20 << 30
    """MAXIMUM_LAYER_SIZE."""
    maximum_manifest_size: int = 4 * MIB
    """MAXIMUM_MANIFEST_SIZE."""
    upload_max_age: float = 48 * 3600
    """UPLOAD_MAX_AGE."""
    maximum_uploads_per_namespace: int = 1000
    """MAXIMUM_UPLOADS_PER_NAMESPACE: uploads that a namespace may have open at once; 0: any number."""
    deleted_blob_retention: float = 24 * 3600
    """DELETED_BLOB_RETENTION."""
    garbage_grace: float = 72 * 3600
    """GARBAGE_GRACE: how long what nothing references stays."""
    collect: bool = True
    """FEATURE_GARBAGE_COLLECTION."""
    collect_every: float = 30.0
    """GARBAGE_COLLECTION_FREQUENCY."""
    tag_expiration: float = 14 * 86400
    """DEFAULT_TAG_EXPIRATION: how long a deleted or moved tag can be restored, unless its namespace has a window of its own."""
    tag_expiration_options: tuple[float, ...] = (0.0, 86400.0, 7 * 86400.0, 14 * 86400.0, 28 * 86400.0)
    """TAG_EXPIRATION_OPTIONS: the windows that a namespace may have."""
    journal_every: float = 10.0
    """JOURNAL_FREQUENCY: how long a change waits at most before it is written into the stores' journals."""
    journal_snapshot_every: float = 86400.0
    """JOURNAL_SNAPSHOT_FREQUENCY: how often the journals begin again with all that is so."""
    journal_retention: float = 14 * 86400.0
    """JOURNAL_RETENTION: how old a backup may be that the journals bring up to date, deletes included."""
    metadata_staleness: float = 5.0
    """METADATA_STALENESS."""
    metadata_grace: float = 3600.0
    """METADATA_GRACE: how long digests and blobs that were seen are answered from memory while the database is away."""
    tag_staleness: float = 0.0
    """TAG_STALENESS: the same for tags, where it is not 0. Two nodes may then show a tag going back."""
    presign_lifetime: int = 600
    """PRESIGN_LIFETIME."""
    redirect_spot_checks: int = 2
    """REDIRECT_SPOT_CHECKS: blobs that clients were redirected to and that the node looks into, per probe interval."""
    redirect_minimum_size: int = 16 * 1024
    """REDIRECT_MINIMUM_SIZE: smaller blobs (image configurations, mostly) are answered by the node, from memory when warm."""
    part_size: int = 5 * MIB
    """PART_SIZE."""
    part_memory: int = 48 * MIB
    """PART_MEMORY: bound of all part buffers of this node, uploads and copies together."""
    copy_streams: int = 8
    """REPLICATION_STREAMS: copies at once, per node."""
    copy_parts_per_blob: int = 4
    """REPLICATION_PARTS_PER_BLOB: parts in flight of one blob."""
    copy_streams_per_location: int = 8
    """REPLICATION_STREAMS_PER_LOCATION."""
    bandwidth_per_location: int | None = None
    """REPLICATION_BYTES_PER_SECOND per location and node; None is unlimited."""
    failover_bandwidth: int | None = None
    """FAILOVER_BYTES_PER_SECOND from each location that is not this node's preferred one, in streamed pulls; None is unlimited."""
    tee_spool: SpoolSettings = SpoolSettings()
    """TEE_SPOOL: where the node keeps blobs that it fetches for pulls and for its preferred store at once."""
    upload_spool: SpoolSettings = SpoolSettings(most=0)
    """UPLOAD_SPOOL: where the node keeps uploads until their commit, to write them again when their store dies."""
    lease_seconds: float = 30.0
    """REPLICATION_LEASE_SECONDS."""
    wanted_retention: float = 7 * 24 * 3600
    """WANTED_RETENTION: how long copies that were asked for beyond policy count as required."""
    replication_waiters: int = 500
    """REPLICATION_WAITERS: requests of the wait API that may block at once, per node."""
    durability_deadline: float = 300.0
    """DURABILITY_DEADLINE: how long a push waits at most for the copies that it, or a policy, asks for."""
    durability_waiters: int = 200
    """DURABILITY_WAITERS: pushes that may wait for their durability at once, per node."""
    probe_interval: float = 2.0
    """HEALTH_PROBE_INTERVAL."""
    probe_deadline: float = 2.0
    """HEALTH_PROBE_DEADLINE. Interval and deadline together bound how long a redirect may name a store that has just died."""
    recovery_quiet: float = 10.0
    """HEALTH_RECOVERY_QUIET: how long a store that was down must answer well before it counts as healthy."""
    health_policy: str = "preferred"
    """HEALTH_ENDTOEND_POLICY: the preferred store's loss turns /health/endtoend to 503, or ("any") only that of all stores."""
    health_database_grace: float | None = None
    """HEALTH_DATABASE_GRACE: None never lets the database's loss turn /health/endtoend to 503."""
    stall_deadline: float = 30.0
    """STALL_DEADLINE: longest silence of a client in a body."""
    hedged_reads: int = 5
    """HEDGED_READS_PERCENT: streams that may ask a second store beside a slow first one, of a hundred."""
    source_stall: float = 5.0
    """SOURCE_STALL_DEADLINE: longest silence of a store in a pull before the next source takes over."""
    drain_delay: float = 0.0
    """DRAIN_DELAY: how long /health/endtoend says 503 before the listener closes."""
    drain_deadline: float = 30.0
    """DRAIN_DEADLINE: how long requests in flight may go on after the listener closed."""
    slow_request: float = 10.0
    """SLOW_REQUEST_THRESHOLD: requests that take longer are logged with where the time went."""
    maximum_connections: int = 4096
    """MAXIMUM_CONNECTIONS: clients' connections at once; what a process may have open bounds them, too (CONNECTIONS_OVER_TLS)."""
    maximum_pulls: int = 256
    """MAXIMUM_PULLS: pull requests that are being answered at once; streams count only until they begin."""
    maximum_streams: int = 128
    """MAXIMUM_STREAMS: blobs that the node streams at once."""
    maximum_pushes: int = 64
    """MAXIMUM_PUSHES: requests that change something, at once."""
    maximum_token_requests: int = 128
    """MAXIMUM_TOKEN_REQUESTS: requests for tokens, logins among them, that are being answered at once."""
    maximum_waiting: int = 4096
    """MAXIMUM_WAITING: requests that wait for each of these four."""
    queue_patience: float = 40.0
    """QUEUE_PATIENCE: how long a request waits for one of these before it is sent away (429); a quarter where nothing moves."""
    read_replicas: tuple[str, ...] = field(default=(), repr=False)
    """DB_READ_REPLICAS: URIs of replicas that are asked for digests."""
    database_pool: int = 10
    """DB_CONNECTION_ARGS.max_connections."""
    debug_secret: str | None = field(default=None, repr=False)
    """ENABLE_HEALTH_DEBUG_SECRET."""
    warnings: tuple[str, ...] = Factory(tuple)
    """Keys that are not supported, and choices that start-up says aloud, one line each."""

    @property
    def preferred(self) -> str:
        """The name of this node's preferred location."""
        return self.preference[0]

    @property
    def keep_trimmed(self) -> float:
        """How long, in seconds, the bytes of a copy that was taken away stay: longer than anybody may still read them.

        A node whose clock is ahead signs URLs that end later, as far as a store takes them.
        """
        return self.presign_lifetime + self.metadata_staleness + CLOCKS_APART
