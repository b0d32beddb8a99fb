"""Are a RabbitMQ server's queues seen through its management plug-in, and only when asked for?"""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest

from tests import servers
from tests.contract.kit import Watched, everything_said, wait_until, watching
from tests.servers import PASSWORD, USER
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resources import RabbitMQManagement

pytestmark = pytest.mark.server

ORDERS = {"messaging.destination.name": "orders"}
UNACKNOWLEDGED = {**ORDERS, "messaging.consumer.group.name": ""}


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ResourceMonitor]:
    monkeypatch.setattr("uno.core.monitoring.resource_types.rabbitmq_management.ASK_SECONDS", 0.2)
    with watching() as monitor:
        yield monitor


def test_ready_unacknowledged_consumers(
    managed_rabbitmq: servers.ManagedRabbitMQ, monitor: ResourceMonitor
) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(managed_rabbitmq.url))
    channel = connection.channel()
    channel.queue_declare("orders", auto_delete=False)
    channel.queue_declare("others", auto_delete=False)
    for number in range(6):
        channel.basic_publish("", "orders", str(number).encode())
    asked = RabbitMQManagement(managed_rabbitmq.management, user=USER, password=PASSWORD, queues=["orders"])
    it = Watched(monitor, asked)
    assert it.resource.endpoint == f"127.0.0.1:{managed_rabbitmq.management_port}/"
    wait_until(lambda: it.read("queue_depth", **ORDERS) == 6, 20, "6 are ready")
    assert it.read("unacknowledged", **UNACKNOWLEDGED) == 0
    assert it.read("consumers", **ORDERS) == 0
    assert it.read("uno.messaging.consumer.utilization", **ORDERS) is None  # nobody takes
    assert not [
        s for s in monitor.series(it.resource.id) if s.labels.get("messaging.destination.name") == "others"
    ]

    channel.basic_qos(prefetch_count=4)
    channel.basic_consume("orders", lambda *given: None)
    connection.process_data_events(time_limit=0.5)
    wait_until(lambda: it.read("unacknowledged", **UNACKNOWLEDGED) == 4, 20, "4 were given out")
    wait_until(lambda: it.read("queue_depth", **ORDERS) == 2, 20, "2 are ready")
    wait_until(lambda: it.read("consumers", **ORDERS) == 1, 20, "one takes")
    wait_until(lambda: it.read("uno.messaging.consumer.utilization", **ORDERS) is not None, 20, "how well")
    assert it.read("messaging.client.connection.up") == 1
    assert "2 ready in orders with 1 consumers" in it.explain()
    assert PASSWORD not in everything_said(monitor) + repr(asked)
    channel.queue_delete("orders")
    channel.queue_delete("others")
    connection.close()


def test_a_wrong_password_a_lost_server_and_one_that_hangs(
    managed_rabbitmq: servers.ManagedRabbitMQ, monitor: ResourceMonitor
) -> None:
    wrong = f"http://{USER}:not-{PASSWORD}@127.0.0.1:{managed_rabbitmq.management_port}/"
    refused = Watched(monitor, RabbitMQManagement(wrong), "refused")
    it = Watched(monitor, RabbitMQManagement(managed_rabbitmq.management, user=USER, password=PASSWORD))
    it.until(1, "messaging.client.connection.up")
    wait_until(lambda: "HTTP 401" in refused.explain(), 10, "said why")
    refused.until(0, "messaging.client.connection.up")
    managed_rabbitmq.freeze()
    wait_until(lambda: it.read("messaging.client.connection.up") == 0, 20, "not answered in time")
    assert "TimeoutError" in it.explain()
    managed_rabbitmq.thaw()
    it.until(1, "messaging.client.connection.up")
    managed_rabbitmq.kill()
    wait_until(lambda: it.read("messaging.client.connection.up") == 0, 20, "lost")
    assert PASSWORD not in everything_said(monitor)


def test_nothing_is_asked_unless_it_is_registered(monitor: ResourceMonitor) -> None:
    there = RabbitMQManagement("http://127.0.0.1:1")
    monitor.discover_resources("message_broker")
    assert monitor.manager.of(there) is None


@pytest.mark.parametrize("url", ["rabbit:15672", "amqp://u:secret@h", "http://", "http://u:secret@h:port"])
def test_what_is_no_url_is_refused_without_saying_it(url: str) -> None:
    with pytest.raises(ValueError, match="looks like") as refusal:
        RabbitMQManagement(url)
    assert "secret" not in str(refusal.value)
