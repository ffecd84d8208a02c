"""The table of configuration keys: each key's name, the field of `Settings` that it fills, and how its value is read.

Keys whose value has a structure of its own (the database, the stores, Redis) are named here and read in rooms of their own.
Defaults stand in `Settings`; `docs/configuration.md` has every key for people.
"""

import difflib
from collections.abc import Callable, Iterable

from attrs import frozen

from node.config.federation import read_issuers
from node.config.ldap import LDAP_KEYS
from node.config.values import (
    GIB,
    KIB,
    MIB,
    parse_duration,
    read_choice,
    read_duration,
    read_durations,
    read_flag,
    read_hostname,
    read_long_text,
    read_names,
    read_networks,
    read_number,
    read_size,
    read_text,
    read_whole_duration,
)

HOUR = 3600
DAY = 24 * HOUR
WEEK = 7 * DAY


@frozen
class Key:
    """A key with one plain value."""

    name: str
    field: str
    read: Callable[[object], object]
    secret: bool = False


# Bounds are where the value stops making sense, not where it stops being wise.
KEYS = (
    Key("SERVER_HOSTNAME", "server_hostname", read_hostname),
    Key("PREFERRED_URL_SCHEME", "scheme", read_choice("http", "https")),
    Key("FEATURE_STORAGE_REPLICATION", "replicate", read_flag),
    Key("FEATURE_PROXY_STORAGE", "proxy_storage", read_flag),
    Key("FEATURE_OPEN_REGISTRY", "open_registry", read_flag),
    Key("AUTHENTICATION_TYPE", "authentication_type", read_choice("Database", "LDAP", "OIDC")),
    # Shorter ones are guessed from a stolen copy of the database.
    Key("DATABASE_SECRET_KEY", "secret_key", read_long_text(16), secret=True),
    Key("SUPER_USERS", "superusers", read_names),
    Key("FEATURE_SUPERUSERS_FULL_ACCESS", "superusers_full_access", read_flag),
    Key("FEATURE_SUPERUSERS_ORG_CREATION_ONLY", "superusers_make_organizations", read_flag),
    Key("FEATURE_ANONYMOUS_ACCESS", "anonymous_access", read_flag),
    Key("CREATE_PRIVATE_REPO_ON_PUSH", "private_on_push", read_flag),
    # The access log is kept for two days.
    Key("TOKEN_LIFETIME", "token_lifetime", read_whole_duration(60, DAY)),
    Key("REFRESH_TOKEN_LIFETIME", "refresh_token_lifetime", read_whole_duration(HOUR, 365 * DAY)),
    # Beyond, somebody who left goes on for too long.
    Key("LOGIN_TOKEN_LIFETIME", "login_token_lifetime", read_whole_duration(60, 90 * DAY)),
    Key("FEATURE_TEAM_SYNCING", "team_syncing", read_flag),
    Key("FEATURE_NONSUPERUSER_TEAM_SYNCING_SETUP", "admins_sync_teams", read_flag),
    # Beyond, somebody who left a group goes on for too long.
    Key("TEAM_RESYNC_STALE_TIME", "team_resync", read_duration(60, DAY)),
    Key("TEAM_LOGIN_STALE_TIME", "team_login", read_duration(HOUR, 365 * DAY)),
    Key("TEAM_RESYNC_HOLD_TIME", "team_hold", read_duration(0, WEEK)),
    Key("ROBOT_FEDERATION_ISSUERS", "federation_issuers", read_issuers),
    Key("REGISTRY_STATE", "registry_state", read_choice("normal", "readonly")),
    Key("DISABLE_PUSHES", "disable_pushes", read_flag),
    Key("DEFAULT_SYSTEM_REJECT_QUOTA_BYTES", "default_quota", read_size()),
    Key("AUDIT_PULLS", "audit_pulls", read_flag),
    Key("ACTION_LOG_ROTATION_THRESHOLD", "audit_retention", read_duration(60)),
    Key("WEBHOOK_ALLOWED_NETWORKS", "webhook_networks", read_networks),
    Key("FEATURE_SPARSE_INDEX", "sparse_index", read_flag),
    Key("ALLOW_LOCAL_REPLICATION", "allow_local_replication", read_flag),
    Key("LIBRARY_NAMESPACE", "library_namespace", read_text),
    Key("V2_PAGINATION_SIZE", "page_size", read_number(1, 10_000)),
    Key("MAXIMUM_LAYER_SIZE", "maximum_layer_size", read_size(MIB)),
    # The spec asks registries to take manifests of 4 MiB; beyond 64 they would not fit a database row well.
    Key("MAXIMUM_MANIFEST_SIZE", "maximum_manifest_size", read_size(64 * KIB, 64 * MIB)),
    Key("UPLOAD_MAX_AGE", "upload_max_age", read_duration(1)),
    # As many as the bound are counted at each POST: index entries of one namespace.
    Key("MAXIMUM_UPLOADS_PER_NAMESPACE", "maximum_uploads_per_namespace", read_number(0, 100_000)),
    Key("DELETED_BLOB_RETENTION", "deleted_blob_retention", parse_duration),
    # A HEAD promises that a blob stays for an hour; what used it until now, that it stays for two.
    Key("GARBAGE_GRACE", "garbage_grace", read_duration(2 * HOUR)),
    Key("FEATURE_GARBAGE_COLLECTION", "collect", read_flag),
    Key("GARBAGE_COLLECTION_FREQUENCY", "collect_every", read_duration(1, DAY)),
    Key("DEFAULT_TAG_EXPIRATION", "tag_expiration", parse_duration),
    Key("TAG_EXPIRATION_OPTIONS", "tag_expiration_options", read_durations),
    Key("JOURNAL_FREQUENCY", "journal_every", read_duration(0.1, DAY)),
    Key("JOURNAL_SNAPSHOT_FREQUENCY", "journal_snapshot_every", read_duration(60, 4 * WEEK)),
    Key("JOURNAL_RETENTION", "journal_retention", read_duration(HOUR)),
    Key("METADATA_STALENESS", "metadata_staleness", read_duration(0, 3600)),
    Key("METADATA_GRACE", "metadata_grace", read_duration(0, WEEK)),
    Key("TAG_STALENESS", "tag_staleness", read_duration(0, WEEK)),
    # Signature version 4 allows a week at most.
    Key("PRESIGN_LIFETIME", "presign_lifetime", read_whole_duration(1, WEEK)),
    Key("REDIRECT_SPOT_CHECKS", "redirect_spot_checks", read_number(0, 100)),
    Key("REDIRECT_MINIMUM_SIZE", "redirect_minimum_size", read_size(0, 4 * MIB)),
    # S3: every part but the last has at least 5 MiB, none more than 5 GiB.
    Key("PART_SIZE", "part_size", read_size(5 * MIB, 5 * GIB)),
    Key("PART_MEMORY", "part_memory", read_size(10 * MIB)),
    Key("REPLICATION_STREAMS", "copy_streams", read_number(1, 1000)),
    Key("REPLICATION_PARTS_PER_BLOB", "copy_parts_per_blob", read_number(1, 100)),
    Key("REPLICATION_STREAMS_PER_LOCATION", "copy_streams_per_location", read_number(1, 1000)),
    Key("REPLICATION_BYTES_PER_SECOND", "bandwidth_per_location", read_size(64 * KIB)),
    Key("FAILOVER_BYTES_PER_SECOND", "failover_bandwidth", read_size(64 * KIB)),
    Key("REPLICATION_LEASE_SECONDS", "lease_seconds", read_duration(1, 3600)),
    Key("REPLICATION_WAITERS", "replication_waiters", read_number(0, 100_000)),
    Key("WANTED_RETENTION", "wanted_retention", read_duration(60)),
    Key("DURABILITY_DEADLINE", "durability_deadline", read_duration(1, DAY)),
    Key("DURABILITY_WAITERS", "durability_waiters", read_number(0, 100_000)),
    Key("HEALTH_PROBE_INTERVAL", "probe_interval", read_duration(0.05, 3600)),
    Key("HEALTH_PROBE_DEADLINE", "probe_deadline", read_duration(0.05, 60)),
    Key("HEALTH_RECOVERY_QUIET", "recovery_quiet", read_duration(0, DAY)),
    Key("HEALTH_ENDTOEND_POLICY", "health_policy", read_choice("preferred", "any")),
    Key("HEALTH_DATABASE_GRACE", "health_database_grace", parse_duration),
    Key("STALL_DEADLINE", "stall_deadline", read_duration(0.1)),
    Key("SOURCE_STALL_DEADLINE", "source_stall", read_duration(0.1)),
    Key("HEDGED_READS_PERCENT", "hedged_reads", read_number(0, 100)),
    Key("DRAIN_DELAY", "drain_delay", read_duration(0, 3600)),
    Key("DRAIN_DEADLINE", "drain_deadline", read_duration(0, DAY)),
    Key("SLOW_REQUEST_THRESHOLD", "slow_request", parse_duration),
    Key("MAXIMUM_CONNECTIONS", "maximum_connections", read_number(1, 1_000_000)),
    Key("MAXIMUM_PULLS", "maximum_pulls", read_number(1, 100_000)),
    Key("MAXIMUM_STREAMS", "maximum_streams", read_number(1, 100_000)),
    Key("MAXIMUM_PUSHES", "maximum_pushes", read_number(1, 100_000)),
    Key("MAXIMUM_TOKEN_REQUESTS", "maximum_token_requests", read_number(1, 100_000)),
    Key("MAXIMUM_WAITING", "maximum_waiting", read_number(0, 100_000)),
    Key("QUEUE_PATIENCE", "queue_patience", read_duration(0, 600)),
    Key("ENABLE_HEALTH_DEBUG_SECRET", "debug_secret", read_text, secret=True),
)

STRUCTURED = (
    "DB_URI",
    "DB_CONNECTION_ARGS",
    "DB_READ_REPLICAS",
    "DISTRIBUTED_STORAGE_CONFIG",
    "DISTRIBUTED_STORAGE_PREFERENCE",
    "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS",
    "USER_EVENTS_REDIS",
    "BUILDLOGS_REDIS",
    "TEE_SPOOL",
    "UPLOAD_SPOOL",
    "SSL_CERTIFICATE",
    "SSL_CERTIFICATE_KEY",
    "SSL_PROTOCOLS",
    "SSL_CIPHERS",
    "SSL_CIPHERSUITES",
    "EXTERNAL_TLS_TERMINATION",
    "TRUSTED_PROXY_CIDR",
    "FEATURE_PROXY_PROTOCOL",
    "EXTRA_CA_CERTS",
    *LDAP_KEYS,
    "ROBOT_FEDERATION",
)
"""Keys that rooms of their own read, `config_database` and the like."""

SUPPORTED = frozenset((*(key.name for key in KEYS), *STRUCTURED))

ENVIRONMENT = ("ANTIPODE_CONFIG", "ANTIPODE_BIND", "QUAY_DISTRIBUTED_STORAGE_PREFERENCE", "QUAY_OVERRIDE_CONFIG")
"""The environment variables that a node reads."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name in `known` that `name` is most likely a slip of, None if it resembles none of them."""
    upper, names = name.upper().replace("-", "_"), sorted(known)
    # Swapped letters weigh much in a short name.
    swapped = [other for other in names if sorted(other) == sorted(upper)]
    # 0.85: one or two wrong letters, or a missing plural, in names of this length; another word is less alike.
    close = swapped or difflib.get_close_matches(upper, names, n=1, cutoff=0.85)
    return close[0] if close else None
