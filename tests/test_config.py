"""The configuration: what a file and the environment mean, and that every error is named, all at once, without secrets."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.config import ConfigurationErrors, describe_database, load_settings, read_settings
from node.config_report import report
from node.settings import MIB, RedisSettings, Settings

EXAMPLE = """
SERVER_HOSTNAME: 127.0.0.1:8100
PREFERRED_URL_SCHEME: http
DB_URI: postgresql://antipode@127.0.0.1:5544/antipode
USER_EVENTS_REDIS: {host: 127.0.0.1, port: 6380}
DISTRIBUTED_STORAGE_CONFIG:
  us: [RadosGWStorage, {hostname: 127.0.0.1, port: 7480, is_secure: false, access_key: A, secret_key: B,
                        bucket_name: us-blobs, storage_path: /registry}]
  eu: [RadosGWStorage, {hostname: 127.0.0.1, port: 7481, is_secure: false, access_key: C, secret_key: D,
                        bucket_name: eu-blobs, storage_path: /registry}]
DISTRIBUTED_STORAGE_PREFERENCE: [us, eu]
DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS: [us, eu]
FEATURE_STORAGE_REPLICATION: true
FEATURE_OPEN_REGISTRY: true
"""
ABSENT = object()
SECRETS = ("hunter2", "s3cr3t")


def document(**changes: Any) -> dict[object, Any]:
    """Return the example with keys replaced, or left out where the value is ABSENT."""
    merged = {**yaml.safe_load(EXAMPLE), **changes}
    return {key: value for key, value in merged.items() if value is not ABSENT}


def settings(environ: Mapping[str, str] | None = None, **changes: Any) -> Settings:
    return read_settings(document(**changes), environ or {})


def errors(environ: Mapping[str, str] | None = None, **changes: Any) -> list[str]:
    """Return the errors' lines; whatever they are, they tell no secret."""
    with pytest.raises(ConfigurationErrors) as caught:
        settings(environ, **changes)
    lines = [str(problem) for problem in caught.value.problems]
    assert not [line for line in (*lines, *caught.value.warnings) for secret in SECRETS if secret in line]
    return lines


def only_error(environ: Mapping[str, str] | None = None, **changes: Any) -> str:
    (line,) = errors(environ, **changes)
    return line


def stores(**arguments: Any) -> dict[str, Any]:
    """Return the example's stores, with arguments of `us` replaced."""
    config = copy.deepcopy(document()["DISTRIBUTED_STORAGE_CONFIG"])
    config["us"][1].update(arguments)
    return dict(config)


class TestFile:
    def test_the_example_is_understood(self, tmp_path: Path) -> None:
        """The file of the manual becomes settings, with Quay's names and our defaults."""
        (tmp_path / "config.yaml").write_text(EXAMPLE)
        made = load_settings(tmp_path / "config.yaml", {"QUAY_DISTRIBUTED_STORAGE_PREFERENCE": "eu us"})
        assert made.server_hostname == "127.0.0.1:8100"
        assert made.database_uri == "postgresql://antipode@127.0.0.1:5544/antipode"
        assert list(made.locations) == ["us", "eu"]
        assert made.preference == ("eu", "us")
        assert made.preferred == "eu"
        assert made.default_locations == ("us", "eu")
        assert made.redis == RedisSettings("127.0.0.1", 6380)
        assert made.replicate
        assert made.open_registry
        assert made.scheme == "http"
        assert made.maximum_layer_size == 20 << 30
        assert made.locations["us"].engine.kind == "RadosGWStorage"

    def test_a_missing_file_is_one_error(self, tmp_path: Path) -> None:
        """A file that is not there is named, and nothing else is complained about."""
        with pytest.raises(ConfigurationErrors, match=r"nowhere.yaml: found no readable file; No such file") as caught:
            load_settings(tmp_path / "nowhere.yaml", {})
        assert len(caught.value.problems) == 1

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("A: [b", "line 1, column 6; this is not YAML: expected ',' or ']'"),
            ("A: b: c\npassword: hunter2", "line 1, column 5; this is not YAML"),
            ("password: *hunter2", "this is not YAML: found undefined alias ..."),
            ("password: !hunter2 x", "this is not YAML"),
            ("- A", "found a list of 1; write a mapping"),
            ("", "found nothing; write a mapping"),
            ("A: 2020-13-45", "YAML cannot read"),
        ],
    )
    def test_a_file_that_is_no_yaml_mapping_is_one_error(self, tmp_path: Path, text: str, said: str) -> None:
        """What is wrong with the file is said by line, without its text; consequences are not."""
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigurationErrors) as caught:
            load_settings(tmp_path / "c.yaml", {})
        assert len(caught.value.problems) == 1
        assert said in str(caught.value)
        assert "hunter2" not in str(caught.value)

    def test_bytes_that_are_not_utf8_are_one_error(self, tmp_path: Path) -> None:
        """A file in another encoding is named."""
        (tmp_path / "c.yaml").write_bytes(b"A: \xff\xfe")
        with pytest.raises(ConfigurationErrors, match="not UTF-8 at 3"):
            load_settings(tmp_path / "c.yaml", {})

    def test_a_key_that_stands_twice_is_an_error(self, tmp_path: Path) -> None:
        """YAML would let the last one win silently, at any depth."""
        text = EXAMPLE.replace("{host: 127.0.0.1,", "{host: 127.0.0.1, host: 127.0.0.2,") + "SERVER_HOSTNAME: x\n"
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigurationErrors) as caught:
            load_settings(tmp_path / "c.yaml", {})
        assert {problem.key for problem in caught.value.problems} == {"host", "SERVER_HOSTNAME"}
        assert "lines 2 and 16" in str(caught.value)

    def test_all_errors_come_at_once(self) -> None:
        """One run names every error, in every part of the file."""
        found = errors(
            SERVER_HOSTNAME="https://registry/",
            DB_URI="mysql://u:hunter2@h/db",
            DISTRIBUTED_STORAGE_CONFIG=stores(port="x", bucket_name=None),
            DISTRIBUTED_STORAGE_PREFERENCE=["ap"],
            MAXIMUM_LAYER_SIZE="20Q",
            USER_EVENTS_REDIS={"host": "h", "password": 5},
        )
        keys = [line.partition(":")[0] for line in found]
        assert keys == [
            "SERVER_HOSTNAME",
            "MAXIMUM_LAYER_SIZE",
            "DB_URI",
            "DISTRIBUTED_STORAGE_CONFIG.us",
            "DISTRIBUTED_STORAGE_CONFIG.us",
            "DISTRIBUTED_STORAGE_PREFERENCE",
            "USER_EVENTS_REDIS.password",
        ]


class TestNames:
    @pytest.mark.parametrize(
        ("slip", "meant"),
        [
            ("FEATURE_STORAGE_REPLICATON", "FEATURE_STORAGE_REPLICATION"),
            ("DISTRIBUTED_STORAGE_CONFIGS", "DISTRIBUTED_STORAGE_CONFIG"),
            ("DISTRIBUTED_STORAGE_DEFAULT_LOCATION", "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS"),
            ("feature_proxy_storage", "FEATURE_PROXY_STORAGE"),
            ("FEATURE-PROXY-STORAGE", "FEATURE_PROXY_STORAGE"),
            ("MAX_LAYER_SIZE", "MAXIMUM_LAYER_SIZE"),
            ("PART_MEMROY", "PART_MEMORY"),
        ],
    )
    def test_a_slip_is_an_error_that_names_the_key(self, slip: str, meant: str) -> None:
        """A key that resembles one of ours would silently do nothing, so it is an error."""
        assert only_error(**{slip: True}) == f"{slip}: found an unknown key; did you mean {meant}?"

    def test_unsupported_keys_of_quay_are_one_warning(self) -> None:
        """A Quay operator's file works; what is not obeyed is named in one line."""
        made = settings(SUPER_USERS=["me"], REGISTRY_STATE="readonly", MYCOMPANY_LOGIN_CONFIG={}, SECRET_KEY="hunter2")
        (line,) = [line for line in made.warnings if "not supported" in line]
        assert line.endswith("ignored: MYCOMPANY_LOGIN_CONFIG, REGISTRY_STATE, SECRET_KEY, SUPER_USERS")

    def test_unknown_keys_are_one_warning(self) -> None:
        """A key that nobody knows is ignored, but not silently."""
        made = settings(ZEBRA=1, HTTP2_PUSH=True)
        assert "unknown keys, ignored: HTTP2_PUSH, ZEBRA" in made.warnings

    def test_a_key_without_a_value_is_absent(self) -> None:
        """An empty key means its default, and a required one is missing."""
        assert settings(MAXIMUM_LAYER_SIZE=None).maximum_layer_size == 20 << 30
        assert only_error(SERVER_HOSTNAME=None).startswith("SERVER_HOSTNAME: found nothing; it is required")


class TestEnvironment:
    def test_the_override_replaces_whole_keys(self) -> None:
        """QUAY_OVERRIDE_CONFIG is a JSON object whose keys replace the file's, before the preference variable counts."""
        override = json.dumps({"PREFERRED_URL_SCHEME": "https", "DISTRIBUTED_STORAGE_PREFERENCE": ["eu"]})
        made = settings({"QUAY_OVERRIDE_CONFIG": override})
        assert (made.scheme, made.preference) == ("https", ("eu",))
        both = {"QUAY_OVERRIDE_CONFIG": override, "QUAY_DISTRIBUTED_STORAGE_PREFERENCE": "us"}
        assert settings(both).preference == ("us",)

    @pytest.mark.parametrize("text", ['{"SECRET": "hunter2"', '["hunter2"]', '"hunter2"', "hunter2"])
    def test_an_override_that_is_no_object_is_an_error(self, text: str) -> None:
        """What is wrong is said without repeating it: overrides hold passwords."""
        assert only_error({"QUAY_OVERRIDE_CONFIG": text}).startswith("QUAY_OVERRIDE_CONFIG: found")

    @pytest.mark.parametrize("text", ["eu us", "eu,us", "eu, us", " eu\n\tus ", "eu,,us,"])
    def test_the_preference_splits_on_white_space_and_commas(self, text: str) -> None:
        """Quay takes "eu,us" for one location and fails at the first push."""
        assert settings({"QUAY_DISTRIBUTED_STORAGE_PREFERENCE": text}).preference == ("eu", "us")

    @pytest.mark.parametrize("text", ["", " ", ",", " , "])
    def test_an_empty_variable_does_not_override(self, text: str) -> None:
        """An unset or blank variable leaves the file's preference."""
        assert settings({"QUAY_DISTRIBUTED_STORAGE_PREFERENCE": text}).preference == ("us", "eu")

    def test_an_unknown_id_names_the_known_ones(self) -> None:
        """An id without a store is an error at start, by the variable's name."""
        line = only_error({"QUAY_DISTRIBUTED_STORAGE_PREFERENCE": "ap us"})
        assert line == (
            "QUAY_DISTRIBUTED_STORAGE_PREFERENCE: found \"ap\" in 'ap, us'; "
            "the ids in DISTRIBUTED_STORAGE_CONFIG are: us, eu"
        )


class TestStores:
    def test_every_argument_error_is_named_by_its_location(self) -> None:
        """The engine's own errors come with the location's id."""
        found = errors(DISTRIBUTED_STORAGE_CONFIG=stores(port="x", is_secure="maybe", secret_key=5))
        assert len(found) == 3
        assert all(line.startswith("DISTRIBUTED_STORAGE_CONFIG.us: ") for line in found)

    def test_an_unknown_class_names_the_known_ones(self) -> None:
        """Quay would take a fake for it."""
        config = {**stores(), "us": ["S4Storage", {}]}
        assert "RadosGWStorage" in only_error(DISTRIBUTED_STORAGE_CONFIG=config)

    @pytest.mark.parametrize(
        "entry", [None, "LocalStorage", [], ["LocalStorage"], ["LocalStorage", None], [{}, {}], {}]
    )
    def test_an_entry_of_another_shape_is_an_error(self, entry: object) -> None:
        """An entry is a class name and a mapping."""
        line = only_error(DISTRIBUTED_STORAGE_CONFIG={**stores(), "us": entry})
        assert line.endswith("write [EngineName, {arguments}]")

    @pytest.mark.parametrize("name", [False, 12, None, "a b", "a,b", "", "a\x00"])
    def test_an_id_that_no_list_could_hold_is_an_error(self, name: object) -> None:
        """Ids are text without white space and commas; YAML reads `no` as false."""
        config = {**stores(), name: stores()["us"]}
        assert only_error(DISTRIBUTED_STORAGE_CONFIG=config).startswith("DISTRIBUTED_STORAGE_CONFIG.")

    @pytest.mark.parametrize("config", [ABSENT, {}, [], "us"])
    def test_without_stores_there_is_no_node(self, config: object) -> None:
        """No stores is one error, not one for every list that names them."""
        assert only_error(DISTRIBUTED_STORAGE_CONFIG=config).startswith("DISTRIBUTED_STORAGE_CONFIG: found")

    def test_redirect_and_public_endpoint_are_per_location(self) -> None:
        """One store can be kept from redirects, and presigned under another name."""
        made = settings(DISTRIBUTED_STORAGE_CONFIG=stores(redirect=False, public_endpoint="https://blobs.example.com"))
        assert not made.locations["us"].redirect
        assert made.locations["eu"].redirect
        assert "presigned as https://blobs.example.com" in report(made)

    @pytest.mark.parametrize("given", [ABSENT, [], None])
    def test_absent_default_locations_mean_every_location_and_it_is_said(self, given: object) -> None:
        """Quay would replicate nothing; here everything is owed everywhere, in one line at start."""
        made = settings(DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS=given)
        assert made.default_locations == ("us", "eu")
        (line,) = [line for line in made.warnings if line.startswith("DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS")]
        assert line.endswith("every location will hold every blob")

    def test_replication_without_a_preference_is_an_error(self) -> None:
        """Every node must know its own store; the message says how to say it."""
        for given in (ABSENT, []):
            line = only_error(DISTRIBUTED_STORAGE_PREFERENCE=given)
            assert 'set QUAY_DISTRIBUTED_STORAGE_PREFERENCE="us eu"' in line
        environ = {"QUAY_DISTRIBUTED_STORAGE_PREFERENCE": "eu"}
        assert settings(environ, DISTRIBUTED_STORAGE_PREFERENCE=ABSENT).preference == ("eu",)

    def test_without_replication_the_file_s_order_is_the_preference(self) -> None:
        """As in Quay: all ids, in the order of the file."""
        made = settings(DISTRIBUTED_STORAGE_PREFERENCE=ABSENT, FEATURE_STORAGE_REPLICATION=ABSENT)
        assert made.preference == ("us", "eu")

    def test_local_stores_are_refused_for_replication(self) -> None:
        """Other hosts cannot reach a directory, so replication into it is an error unless it was asked for by name."""
        config = {"us": ["LocalStorage", {"storage_path": "/var/us"}], "eu": stores()["eu"]}
        line = only_error(DISTRIBUTED_STORAGE_CONFIG=config)
        assert line.startswith("DISTRIBUTED_STORAGE_CONFIG.us: found LocalStorage with FEATURE_STORAGE_REPLICATION;")
        assert "ALLOW_LOCAL_REPLICATION: true" in line
        made = settings(DISTRIBUTED_STORAGE_CONFIG=config, ALLOW_LOCAL_REPLICATION=True)
        assert [line for line in made.warnings if line.startswith("ALLOW_LOCAL_REPLICATION: us ")]
        alone = settings(DISTRIBUTED_STORAGE_CONFIG=config, FEATURE_STORAGE_REPLICATION=False)
        assert not alone.replicate

    @pytest.mark.parametrize("given", ["us eu", ["us", "eu", "us"]])
    def test_lists_are_forgiving_where_the_meaning_is_plain(self, given: object) -> None:
        """A text is split as in the environment, and an id that stands twice counts once."""
        assert settings(DISTRIBUTED_STORAGE_PREFERENCE=given).preference == ("us", "eu")

    @pytest.mark.parametrize("given", [["us", False], {"us": 1}, 5, " , "])
    def test_lists_of_something_else_are_errors(self, given: object) -> None:
        """A preference is a list of ids."""
        assert only_error(DISTRIBUTED_STORAGE_PREFERENCE=given).startswith("DISTRIBUTED_STORAGE_PREFERENCE: found")


class TestDatabase:
    @pytest.mark.parametrize(
        ("given", "uri", "said"),
        [
            ("postgres://u@h/db", "postgresql://u@h/db", "h, database db, as u"),
            ("postgresql+psycopg2://u:hunter2@h:1/db", "postgresql://u:hunter2@h:1/db", "h:1, database db, as u"),
            (
                "postgresql://u:hunter2@a:1,b:2/db?sslmode=verify-full",
                "postgresql://u:hunter2@a:1,b:2/db?sslmode=verify-full",
                "a:1 or b:2, database db, as u, sslmode verify-full",
            ),
            ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db", "[::1]:5432, database db"),
            (
                "postgresql:///db?host=/run/postgresql",
                "postgresql:///db?host=%2Frun%2Fpostgresql",
                "/run/postgresql, database db",
            ),
            ("postgresql://u:p%40hunter2@h/db", "postgresql://u:p%40hunter2@h/db", "h, database db, as u"),
        ],
    )
    def test_the_forms_of_a_uri(self, given: str, uri: str, said: str) -> None:
        """Quay's and SQLAlchemy's forms become one that asyncpg takes; its description has no password."""
        made = settings(DB_URI=given)
        assert made.database_uri == uri
        assert describe_database(uri) == said
        assert "hunter2" not in report(made)
        assert "hunter2" not in repr(made)

    @pytest.mark.parametrize(
        "given",
        [
            ABSENT,
            5,
            "",
            "localhost/db",
            "mysql+pymysql://u:hunter2@h/db",
            "sqlite:///hunter2",
            "postgresql://u:hunter2@h",
            "postgresql://u:hunter2@h/",
            "postgresql://u:hunter2@h:port/db",
            "postgresql://u:hunter2@h:99999/db",
            "postgresql://u:hunter2@[::1/db",
            "postgresql://u:hun@ter2hunter2@h/db",
            "postgresql://u:#hunter2@h/db",
            "postgresql://u:hunter2@h/db?sslmode=maybe",
            "postgresql://u:hunter2@h/db?sslmode",
        ],
    )
    def test_a_uri_that_cannot_work_is_an_error_without_its_password(self, given: object) -> None:
        """What is not a PostgreSQL URI is refused before anything connects."""
        assert only_error(DB_URI=given).startswith("DB_URI: found")

    def test_connection_arguments(self, tmp_path: Path) -> None:
        """TLS arguments go into the URI, max_connections bounds the pool, and what is peewee's own is named."""
        (tmp_path / "ca.pem").touch()
        made = settings(
            DB_CONNECTION_ARGS={
                "sslmode": "verify-full",
                "sslrootcert": str(tmp_path / "ca.pem"),
                "max_connections": 20,
                "threadlocals": True,
                "autorollback": True,
            }
        )
        assert "sslmode=verify-full" in made.database_uri
        assert made.database_pool == 20
        assert "DB_CONNECTION_ARGS: not supported and ignored: threadlocals, autorollback" in made.warnings

    @pytest.mark.parametrize(
        ("arguments", "key"),
        [
            (["sslmode"], "DB_CONNECTION_ARGS"),
            ({"sslmode": "yes"}, "DB_CONNECTION_ARGS.sslmode"),
            ({"max_connections": 1}, "DB_CONNECTION_ARGS.max_connections"),
            ({"max_connections": "20"}, "DB_CONNECTION_ARGS.max_connections"),
            ({"sslrootcert": "/nowhere/ca.pem"}, "DB_CONNECTION_ARGS.sslrootcert"),
        ],
    )
    def test_connection_arguments_that_cannot_work(self, arguments: object, key: str) -> None:
        """Each wrong argument is named by its place."""
        assert only_error(DB_CONNECTION_ARGS=arguments).startswith(f"{key}: found")

    def test_contradictions_are_errors(self) -> None:
        """The same argument in the URI and beside it, with two values, is refused."""
        uri = "postgresql://u@h/db?sslmode=require"
        assert only_error(DB_URI=uri, DB_CONNECTION_ARGS={"sslmode": "disable"}).endswith(
            'DB_URI says "require": say it in one place'
        )

    def test_options_of_another_client_are_left_out(self) -> None:
        """The library would send them to the server, which refuses the connection."""
        made = settings(DB_URI="postgresql://u@h/db?connect_timeout=10&application_name=x")
        assert made.database_uri == "postgresql://u@h/db?application_name=x"
        assert "DB_URI: options that are not supported and ignored: connect_timeout" in made.warnings


class TestRedis:
    def test_user_events_before_build_logs_before_none(self) -> None:
        """USER_EVENTS_REDIS, else BUILDLOGS_REDIS, else the node runs without."""
        logs = {"host": "logs", "password": "hunter2"}
        assert settings(BUILDLOGS_REDIS=logs).redis == RedisSettings("127.0.0.1", 6380)
        assert settings(BUILDLOGS_REDIS=logs, USER_EVENTS_REDIS=ABSENT).redis == RedisSettings(
            "logs", password="hunter2"
        )
        without = settings(USER_EVENTS_REDIS=ABSENT)
        assert without.redis is None
        assert "LISTEN and NOTIFY" in report(without)

    def test_tls(self, tmp_path: Path) -> None:
        """Quay's ssl keys mean TLS; what would weaken its checks is named and not obeyed."""
        (tmp_path / "ca.pem").touch()
        ca_file = str(tmp_path / "ca.pem")
        given = {"host": "h", "ssl": True, "ssl_ca_certs": ca_file, "ssl_cert_reqs": "none"}
        made = settings(USER_EVENTS_REDIS=given)
        assert made.redis == RedisSettings("h", tls=True, ca_file=ca_file)
        assert "USER_EVENTS_REDIS: not supported and ignored: ssl_cert_reqs" in made.warnings

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("h", "write at least the host"),
            ({"port": 6379}, "write at least the host"),
            ({"host": "h:6379"}, 'found "h:6379"; write the bare host'),
            ({"host": "h", "port": "6379"}, "port: found"),
            ({"host": "h", "port": 0}, "port: found 0; write 1 to 65535"),
            ({"host": "h", "pasword": "hunter2"}, "did you mean password?"),
            ({"host": "h", "ssl": "hunter"}, "ssl: found"),
            ({"host": "h", "ssl_ca_certs": "/nowhere"}, "there is no such file"),
        ],
    )
    def test_what_cannot_work(self, given: object, said: str) -> None:
        """Each wrong argument is named by its place."""
        assert any(said in line and line.startswith("USER_EVENTS_REDIS") for line in errors(USER_EVENTS_REDIS=given))


class TestValues:
    def test_sizes_and_durations_as_people_write_them(self) -> None:
        """Numbers are bytes and seconds; text has units."""
        made = settings(
            MAXIMUM_LAYER_SIZE="5G",
            PART_MEMORY="128MiB",
            UPLOAD_MAX_AGE="48h",
            METADATA_STALENESS="2500ms",
            STALL_DEADLINE=12.5,
            PRESIGN_LIFETIME="10m",
            HEALTH_DATABASE_GRACE="1m",
            REPLICATION_BYTES_PER_SECOND="50MB",
        )
        assert made.maximum_layer_size == 5 << 30
        assert made.part_memory == 128 * MIB
        assert made.upload_max_age == 48 * 3600
        assert made.metadata_staleness == 2.5
        assert made.stall_deadline == 12.5
        assert made.presign_lifetime == 600
        assert made.health_database_grace == 60
        assert made.bandwidth_per_location == 50_000_000

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("FEATURE_PROXY_STORAGE", "true"),
            ("FEATURE_PROXY_STORAGE", 1),
            ("PREFERRED_URL_SCHEME", "ftp"),
            ("SERVER_HOSTNAME", "registry.example.com/path"),
            ("SERVER_HOSTNAME", "registry example"),
            ("SERVER_HOSTNAME", "registry:99999"),
            ("SERVER_HOSTNAME", 5),
            ("V2_PAGINATION_SIZE", 0),
            ("V2_PAGINATION_SIZE", "50"),
            ("V2_PAGINATION_SIZE", True),
            ("MAXIMUM_LAYER_SIZE", -1),
            ("MAXIMUM_LAYER_SIZE", "0.3B"),
            ("MAXIMUM_LAYER_SIZE", "9" * 5000),
            ("MAXIMUM_LAYER_SIZE", "1000G"),
            ("UPLOAD_MAX_AGE", "2 fortnights"),
            ("UPLOAD_MAX_AGE", float("nan")),
            ("UPLOAD_MAX_AGE", float("inf")),
            ("UPLOAD_MAX_AGE", ""),
            ("UPLOAD_MAX_AGE", True),
            ("PRESIGN_LIFETIME", "8d"),
            ("PRESIGN_LIFETIME", 1.5),
            ("PART_SIZE", "1MiB"),
            ("LIBRARY_NAMESPACE", ""),
            ("ENABLE_HEALTH_DEBUG_SECRET", 5),
            ("FEATURE_OPEN_REGISTRY", "hunter"),
        ],
    )
    def test_a_value_that_cannot_work_is_named_with_its_key(self, key: str, value: object) -> None:
        """Key, what was found and what would be right stand in one line."""
        line = only_error(**{key: value})
        assert line.startswith(f"{key}: found ")
        assert "; " in line
        assert len(line) < 300

    def test_values_that_contradict_each_other(self) -> None:
        """Parts must fit into their memory, and a layer into ten thousand parts."""
        assert only_error(PART_SIZE="40MiB").startswith(
            "PART_MEMORY: found 64 MiB; write at least twice PART_SIZE: 80 MiB"
        )
        assert only_error(MAXIMUM_LAYER_SIZE="60G").startswith("MAXIMUM_LAYER_SIZE: found 60 GiB; 10000 parts")

    def test_bytes_that_leave_before_the_answers_that_name_them_are_warned_of(self) -> None:
        """A retention below what presigned URLs and caches live is allowed, and said."""
        made = settings(DELETED_BLOB_RETENTION=1)
        assert len([line for line in made.warnings if line.startswith("DELETED_BLOB_RETENTION (1s)")]) == 2

    @pytest.mark.parametrize("given", [ABSENT, False])
    def test_an_open_registry_must_be_asked_for(self, given: object) -> None:
        """Without accounts a node refuses to start unless it was told to be open, and then says so."""
        assert "set FEATURE_OPEN_REGISTRY: true" in only_error(FEATURE_OPEN_REGISTRY=given)
        assert [line for line in settings().warnings if line.startswith("FEATURE_OPEN_REGISTRY: anyone")]

    def test_secrets_are_not_in_representations(self) -> None:
        """Neither settings nor the report tell passwords and keys."""
        made = settings(
            DB_URI="postgresql://u:hunter2@h/db",
            USER_EVENTS_REDIS={"host": "h", "password": "hunter2"},
            ENABLE_HEALTH_DEBUG_SECRET="hunter2",
            DISTRIBUTED_STORAGE_CONFIG=stores(secret_key="s3cr3t"),
        )
        for text in (repr(made), report(made)):
            assert "hunter2" not in text
            assert "s3cr3t" not in text
