"""The configuration: what a file and the environment mean, and that every error is named, all at once, without secrets."""

import json
from pathlib import Path

import pytest

from node.config.load import ConfigurationErrors, load_settings
from node.config.report import report
from node.config.settings import MIB, RedisSettings
from tests.configurations import ABSENT, EXAMPLE, errors, only_error, settings, stores

KEY = "hunter2 hunter2 hunter2"


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
            (f"A: {'[' * 3000}", "brackets in brackets, hundreds deep"),
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
        assert "lines 2 and 15" in str(caught.value)

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
        made = settings(TESTING=True, LOGS_MODEL="database", MYCOMPANY_TRIGGER_CONFIG={}, SECRET_KEY="hunter2")
        (line,) = [line for line in made.warnings if "not supported" in line]
        assert line.endswith("ignored: LOGS_MODEL, MYCOMPANY_TRIGGER_CONFIG, SECRET_KEY, TESTING")

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
        override = json.dumps({"SERVER_HOSTNAME": "elsewhere.test", "DISTRIBUTED_STORAGE_PREFERENCE": ["eu"]})
        made = settings({"QUAY_OVERRIDE_CONFIG": override})
        assert (made.server_hostname, made.preference) == ("elsewhere.test", ("eu",))
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
            JOURNAL_FREQUENCY="7.5",
        )
        assert made.maximum_layer_size == 5 << 30
        assert made.part_memory == 128 * MIB
        assert made.upload_max_age == 48 * 3600
        assert made.metadata_staleness == 2.5
        assert made.stall_deadline == 12.5
        assert made.presign_lifetime == 600
        assert made.health_database_grace == 60
        assert made.bandwidth_per_location == 50_000_000
        assert made.journal_every == 7.5

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
            ("UPLOAD_MAX_AGE", 10**400),
            ("ACTION_LOG_ROTATION_THRESHOLD", "101y"),
            ("ACTION_LOG_ROTATION_THRESHOLD", "36501d"),
            ("DEFAULT_SYSTEM_REJECT_QUOTA_BYTES", 10**400),
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
            "PART_MEMORY: found 48 MiB; write at least twice PART_SIZE: 80 MiB"
        )
        assert only_error(MAXIMUM_LAYER_SIZE="60G").startswith("MAXIMUM_LAYER_SIZE: found 60 GiB; 10000 parts")

    def test_nothing_goes_while_somebody_relies_on_it(self) -> None:
        """Bytes outlive the answers that name them, and unused blobs the longest upload; the error names both keys."""
        assert "PRESIGN_LIFETIME plus METADATA_STALENESS, which is 10m 5s" in only_error(DELETED_BLOB_RETENTION="10m")
        settings(DELETED_BLOB_RETENTION="10m 5s")
        assert "more than UPLOAD_MAX_AGE, which is 2d" in only_error(GARBAGE_GRACE="48h")
        settings(GARBAGE_GRACE="49h")

    def test_the_usual_tag_window_is_one_that_may_be_chosen(self) -> None:
        """DEFAULT_TAG_EXPIRATION is one of TAG_EXPIRATION_OPTIONS, as in Quay."""
        assert "one of TAG_EXPIRATION_OPTIONS: 1d, 7d" in only_error(TAG_EXPIRATION_OPTIONS=["1d", "1w"])
        assert settings(TAG_EXPIRATION_OPTIONS=["1d", "1w"], DEFAULT_TAG_EXPIRATION="7d").tag_expiration == 7 * 86400

    @pytest.mark.parametrize("given", [ABSENT, False])
    def test_an_open_registry_must_be_asked_for(self, given: object) -> None:
        """A node has accounts, and needs a key for their secrets, unless it was told to be open, and then says so."""
        assert "set FEATURE_OPEN_REGISTRY: true" in only_error(FEATURE_OPEN_REGISTRY=given)
        assert "at least 16 random" in only_error(FEATURE_OPEN_REGISTRY=given, DATABASE_SECRET_KEY="short")
        made = settings(FEATURE_OPEN_REGISTRY=given, DATABASE_SECRET_KEY=KEY, SUPER_USERS=["alice"])
        assert (made.open_registry, made.secret_key, made.superusers) == (False, KEY, ("alice",))
        assert KEY not in repr(made)
        assert settings(DATABASE_SECRET_KEY=KEY).open_registry
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
