"""The edge's own promises once more, over TLS: connections end, bodies flow and stall, and a stop drains as they do in plain text.

Tests of the neighbouring rooms run here again, with a `node` that speaks TLS, by the lane and by Hypercorn alone.
"""

import ssl
from pathlib import Path

import pytest
import trio

from node.config.settings import TlsSettings
from node.tls import Certificates
from tests.certificates import Authority
from tests.edge.conftest import Node
from tests.edge.test_answers import test_failure_in_the_body as test_failure_in_the_body
from tests.edge.test_answers import test_head as test_head
from tests.edge.test_answers import test_stream as test_stream
from tests.edge.test_bodies import test_body_with_a_length as test_body_with_a_length
from tests.edge.test_bodies import test_chunked_body as test_chunked_body
from tests.edge.test_bodies import test_client_leaves_a_download as test_client_leaves_a_download
from tests.edge.test_bodies import test_client_leaves_in_its_body as test_client_leaves_in_its_body
from tests.edge.test_bodies import test_stalled_body as test_stalled_body
from tests.edge.test_connections import test_client_closes_an_idle_connection as test_client_closes_an_idle_connection
from tests.edge.test_connections import test_connection_close as test_connection_close
from tests.edge.test_connections import test_idle_timer_after_an_answer as test_idle_timer_after_an_answer
from tests.edge.test_connections import test_pipelining as test_pipelining
from tests.edge.test_connections import test_stop_with_idle_connections as test_stop_with_idle_connections
from tests.edge.test_drain import (
    test_a_head_that_has_begun_when_the_node_stops as test_a_head_that_has_begun_when_the_node_stops,
)
from tests.edge.test_drain import (
    test_a_request_on_its_way_when_the_node_stops as test_a_request_on_its_way_when_the_node_stops,
)
from tests.edge.test_drain import (
    test_an_answer_that_begins_while_the_node_stops as test_an_answer_that_begins_while_the_node_stops,
)
from tests.edge.test_drain import (
    test_an_answer_that_has_begun_when_the_node_stops as test_an_answer_that_has_begun_when_the_node_stops,
)
from tests.edge.test_drain import test_drain_deadline as test_drain_deadline
from tests.edge.test_drain import test_draining_sends_clients_away as test_draining_sends_clients_away
from tests.edge.test_drain import test_requests_in_flight_are_finished as test_requests_in_flight_are_finished
from tests.edge.test_drain import test_stalled_reader as test_stalled_reader
from tests.edge.test_drain import test_upload_in_flight_is_finished as test_upload_in_flight_is_finished


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def settings(authority: Authority) -> TlsSettings:
    pair = authority.sign("node")
    return TlsSettings(Path(pair.certificate), Path(pair.key))


@pytest.fixture(params=["hypercorn", "lane"])
async def node(
    nursery: trio.Nursery, request: pytest.FixtureRequest, authority: Authority, settings: TlsSettings
) -> Node:
    """A node that speaks TLS, in place of the one of this folder."""
    trust = ssl.create_default_context(cafile=str(authority.own.certificate))
    with_lane = request.param == "lane"
    return Node(nursery, with_lane=with_lane, tls=Certificates(settings).current, trust=trust)
