"""How the tests' S3 stores are described to the engine."""

from engines import EngineSpec, parse_engine
from tests.services import Store


def spec_of(store: Store, storage_path: str, **other: object) -> EngineSpec:
    """Return the parsed engine on a running store, with changes to its arguments."""
    own: dict[str, object] = {
        "hostname": store.hostname,
        "port": store.port,
        "is_secure": store.is_secure,
        "access_key": store.access_key,
        "secret_key": store.secret_key,
        "bucket_name": store.bucket,
        "storage_path": storage_path,
        "ca_bundle": store.ca,
        # A store that is there is not one that is silent because the machine is busy.
        "connect_timeout": 60,
        "read_timeout": 60,
        "write_timeout": 60,
    }
    return parse_engine("RadosGWStorage", own | other)
