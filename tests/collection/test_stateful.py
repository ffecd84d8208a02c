"""Made-up histories of a small registry: what is reachable, young or promised never goes, and everything else goes in the end."""

import os
from typing import Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.crossing import open_bridge
from node.records.postgres import open_database
from tests.collection.universe import BLOBS, MANIFESTS, REPOSITORIES, TAGS, Universe

Step = tuple[Any, ...]

_repository, _tag, _blob = st.sampled_from(REPOSITORIES), st.sampled_from(TAGS), st.sampled_from(BLOBS)
_manifest, _maybe_tag = st.integers(0, len(MANIFESTS) - 1), st.sampled_from((None, *TAGS))
# Around the hour that a HEAD promises, the two that are left at the end, the retention, the grace, and a tag's window.
_hours = st.sampled_from((0.6, 1.1, 2.1, 25.0, 73.0, 340.0))


def _step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(name), *arguments)


STEPS = st.one_of(
    _step("push_image", _repository, _manifest, _maybe_tag),
    _step("push_image", _repository, _manifest, _tag),
    _step("put", _repository, _manifest, _maybe_tag),
    _step("push_blob", _repository, _blob),
    _step("mount", _repository, _repository, _blob),
    _step("delete_tag", _repository, _tag),
    _step("delete_manifest", _repository, _manifest),
    _step("delete_blob", _repository, _blob),
    _step("delete_repository", _repository),
    _step("head", _repository, _blob),
    _step("claim"),
    _step("copy"),
    _step("sweep"),
    _step("wait", _hours),
    _step("wait", _hours),
    _step("collect"),
    _step("collect"),
    _step("collect_while_copying"),
)


async def play(uri: str, steps: list[Step]) -> None:
    """Play a history, look at everything after each step, and at what is left in the end."""
    async with open_bridge(), open_database(uri) as database:
        universe = await Universe.make(database)
        for name, *arguments in steps:
            await getattr(universe, name)(*arguments)
            await universe.check()
        await universe.end()
        await universe.check()


_EXAMPLES = 50 if os.environ.get("CI") == "true" else 12


@settings(
    max_examples=_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(steps=st.lists(STEPS, min_size=5, max_size=25))
def test_only_garbage_goes_and_all_of_it(migrated_uri: str, steps: list[Step]) -> None:
    """Nothing goes that a tag, its window, the grace or a promise keeps; in the end exactly what tags reach is left."""
    trio.run(play, migrated_uri, steps)
