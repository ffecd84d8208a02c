"""The configuration of the stores, the database and Redis: Quay's forms and traps."""

from pathlib import Path
from typing import Any

import pytest

from node.config.load import describe_database
from node.config.report import report
from node.config.settings import RedisSettings, SpoolSettings
from tests.configurations import ABSENT, errors, only_error, settings, stores


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
        ("path", "where"),
        [("/registry", "where"), ("registry/", "where"), ("/registry/eu", "inside of where"), ("/", "around where")],
    )
    def test_two_locations_in_one_place_are_an_error(self, path: str, where: str) -> None:
        """One's blobs would be garbage of the other, and a copy no second one."""
        config = stores()
        config["eu"] = ["RadosGWStorage", {**config["us"][1], "storage_path": path}]
        line = only_error(DISTRIBUTED_STORAGE_CONFIG=config)
        assert line.startswith("DISTRIBUTED_STORAGE_CONFIG.eu: found http://127.0.0.1:7480/us-blobs/")
        assert f", which is {where} us is; give each location a bucket of its own" in line

    def test_keys_do_not_tell_places_apart(self) -> None:
        """They may be of two tenants with a bucket of one name, or a second pair for one bucket: what is right for both is said."""
        config = stores()
        config["eu"] = ["RadosGWStorage", {**config["us"][1], "access_key": "C", "secret_key": "D"}]
        line = only_error(DISTRIBUTED_STORAGE_CONFIG=config)
        assert line.endswith("or a storage_path beside the other's, also where their keys are of two tenants")
        config["eu"][1]["storage_path"] = "/eu"
        assert list(settings(DISTRIBUTED_STORAGE_CONFIG=config).locations) == ["us", "eu"]

    def test_a_tenant_is_no_part_of_a_buckets_name(self) -> None:
        """The library takes no such name: every call would fail."""
        line = only_error(DISTRIBUTED_STORAGE_CONFIG=stores(bucket_name="tenant:us-blobs"))
        assert "bucket_name: 'tenant:us-blobs' cannot be used; give the bucket's name alone" in line

    def test_a_host_is_the_same_in_capitals(self) -> None:
        """Two locations in one bucket are found however its gateway's name is written."""
        config = stores(hostname="Store.example.com")
        config["eu"] = ["RadosGWStorage", {**config["us"][1], "hostname": "store.example.com"}]
        assert "which is where us is" in only_error(DISTRIBUTED_STORAGE_CONFIG=config)

    @pytest.mark.parametrize("path", ["/registry2", "/reg", "/eu"])
    def test_one_bucket_may_have_several_locations(self, path: str) -> None:
        """What stands beside each other does no harm."""
        config = stores()
        config["eu"] = ["RadosGWStorage", {**config["us"][1], "storage_path": path}]
        assert list(settings(DISTRIBUTED_STORAGE_CONFIG=config).locations) == ["us", "eu"]

    def test_a_store_to_which_copies_may_take_all_connections_is_named(self) -> None:
        """Who shares connections with copies finds none: with what was found, and what would be right; 256 are enough."""

        def warned(connections: int | None, **changes: Any) -> list[str]:
            made = settings(DISTRIBUTED_STORAGE_CONFIG=stores(maximum_connections=connections), **changes)
            return [line for line in made.warnings if "maximum_connections" in line]

        assert warned(None) == warned(33) == []
        (line,) = warned(32)
        assert line.startswith("DISTRIBUTED_STORAGE_CONFIG.us: maximum_connections is 32, and copies alone may want 32")
        assert "give it 64 or more" in line
        assert warned(7, REPLICATION_STREAMS_PER_LOCATION=2, REPLICATION_PARTS_PER_BLOB=3) == []
        assert "want 400 at once" in warned(None, REPLICATION_STREAMS=500, REPLICATION_STREAMS_PER_LOCATION=100)[0]

    def test_local_folders_are_places_too(self, tmp_path: Path) -> None:
        """A folder below another location's is inside of it."""
        config = {"us": ["LocalStorage", {"storage_path": str(tmp_path)}]}
        config["eu"] = ["LocalStorage", {"storage_path": f"{tmp_path}/eu/"}]
        changes = {"DISTRIBUTED_STORAGE_CONFIG": config, "ALLOW_LOCAL_REPLICATION": True}
        assert "inside of where us is" in only_error(**changes)
        config["us"][1] = {"storage_path": f"{tmp_path}/us"}
        assert list(settings(**changes).locations) == ["us", "eu"]

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
        config = stores()
        config.update({name: config["us"]})  # type: ignore[dict-item]  # ids that are no text are the subject
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
        for given in (ABSENT, list[str]()):
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
            ({"sslmod": "verify-full"}, "DB_CONNECTION_ARGS.sslmod"),
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


class TestSpools:
    def test_uploads_are_not_kept_unless_it_is_asked_for(self) -> None:
        """Without the key nothing is kept; with any of its parts, as much as the page says."""
        assert settings().upload_spool.most == 0
        assert "no, they die with their store" in report(settings())
        assert settings(UPLOAD_SPOOL={"path": "/tmp"}).upload_spool == SpoolSettings(Path("/tmp"), 1 << 30)  # noqa: S108  # is on every machine
        assert settings(UPLOAD_SPOOL={"max_bytes": "2MiB"}).upload_spool == SpoolSettings(None, 2 << 20)
        assert "2 MiB in " in report(settings(UPLOAD_SPOOL={"max_bytes": "2MiB"}))

    @pytest.mark.parametrize("key", ["UPLOAD_SPOOL", "TEE_SPOOL"])
    def test_what_is_wrong_with_a_spool_is_named(self, key: str) -> None:
        """A folder that is not there, less than a piece, and a slip of a name."""
        assert only_error(**{key: {"path": "/nowhere/at/all"}}).startswith(f"{key}.path: found")
        assert only_error(**{key: {"max_bytes": 5}}).startswith(f"{key}.max_bytes: found")
        assert "did you mean max_bytes?" in only_error(**{key: {"max_byte": 5}})
