"""Is an MQTT client seen as it is, paho and aiomqtt: published, received, buffered, the frozen and the lost broker?"""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator
from typing import Any

import aiomqtt
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests import servers
from tests.contract.kit import Watched, everything_said, hooked, soon
from tests.servers import HOST, PASSWORD, USER, wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

SENT, CONSUMED, UP = "messages_sent", "messages_consumed", "messaging.client.connection.up"
OUT, IN = {"direction": "out"}, {"direction": "in"}


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.1) as monitor:
        yield monitor


def connect(broker: servers.Mosquitto) -> Any:
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set(USER, PASSWORD)
    client.reconnect_delay_set(1, 1)
    client.connect(HOST, broker.port)
    client.loop_start()
    wait_until(client.is_connected, 10, "connected")
    return client


def bye(client: Any) -> None:
    client.disconnect()
    client.loop_stop()


@pytest.fixture
def client(mosquitto: servers.Mosquitto) -> Iterator[Any]:
    client = connect(mosquitto)
    yield client
    mosquitto.recover()
    bye(client)


@pytest.fixture
def it(client: Any, monitor: ResourceMonitor) -> Watched:
    return Watched(monitor, client)


def subscribe(client: Any, topic: str) -> None:
    done: list[object] = []
    client.on_subscribe = lambda *_: done.append(1)
    client.subscribe(topic, qos=1)
    wait_until(lambda: done, 5, "subscribed")


def test_published_and_received(client: Any, it: Watched) -> None:
    told: list[str] = []

    def handle(client: object, userdata: object, message: Any) -> None:
        time.sleep(0.05)  # the work itself
        told.extend(it.sites())
        if message.payload == b"bad":
            raise LookupError("no such order")

    client.on_message = handle
    client.suppress_exceptions = True
    subscribe(client, "orders")
    client.publish("orders", b"1", qos=0)
    client.publish("orders", b"2", qos=1).wait_for_publish(5)
    client.publish("orders", b"3", qos=2).wait_for_publish(5)
    it.until(3, SENT, "total")
    it.until(3, CONSUMED, "total")
    it.until(3, "processing_time", "count")
    assert (it.read("processing_time", "sum") or 0) == pytest.approx(0.15, abs=0.1)
    assert it.read("messaging.client.operation.duration", "count") == 2
    assert "test_mqtt.py" in told[-1]
    it.until(0, "buffered", **OUT)
    assert it.read("buffered", **IN) is None  # paho hands messages on at once
    assert it.read("errors", "total") == 0


def test_a_frozen_and_a_killed_broker_and_no_password(
    client: Any, it: Watched, monitor: ResourceMonitor, mosquitto: servers.Mosquitto
) -> None:
    it.until(1, UP)
    assert it.resource.endpoint == f"{HOST}:{mosquitto.port}"
    mosquitto.freeze()
    message = client.publish("orders", b"x", qos=1)
    it.until(1, "buffered", **OUT)
    wait_until(lambda: "the broker has not answered for" in it.explain(), 5, "said")
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.DOWN, 15, "down")
    assert "1 messages are not acknowledged" in it.explain()
    mosquitto.thaw()
    message.wait_for_publish(5)
    it.until(0, "buffered", **OUT)
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.UP, 15, "up again")

    mosquitto.kill()
    it.until(0, UP)
    assert client.publish("orders", b"x").rc == paho.MQTT_ERR_NO_CONN  # as without uno
    it.until(1, "errors", "total")
    assert "not connected" in it.explain()
    mosquitto.start()
    it.until(1, UP)
    assert PASSWORD not in everything_said(monitor)


async def test_aiomqtt(monitor: ResourceMonitor, mosquitto: servers.Mosquitto) -> None:
    monitor.discover_resources("message_broker")
    async with aiomqtt.Client(HOST, mosquitto.port, username=USER, password=PASSWORD) as client:
        made = weakref.ref(client)
        await soon(lambda: monitor.manager.of(made()), "found")
        inside = client._client
        assert monitor.manager.of(inside) is None  # one of the two stands for both
        del inside
        resource = monitor.manager.of(client)
        assert resource is not None

        def read(metric: str, stat: str | None = None, **labels: str) -> float | None:
            return monitor.read(resource.id, metric, labels, stat=stat)

        await client.subscribe("orders", qos=1)
        for _ in range(3):
            await client.publish("orders", b"x", qos=1)
        await soon(lambda: read("buffered", **IN) == 3, "3 wait")
        assert read(SENT, "total") == 3
        assert read(CONSUMED, "total") == 0
        taken = 0
        async for _ in client.messages:
            taken += 1
            await asyncio.sleep(0.05)
            if taken == 3:
                break
        await soon(lambda: read(CONSUMED, "total") == 3, "3 taken")
        await soon(lambda: read("buffered", **IN) == 0, "none wait")
        await soon(lambda: read("processing_time", "count") == 2, "the last one is still worked on")
        assert read("messaging.client.operation.duration", "count") == 3
        assert PASSWORD not in everything_said(monitor)
    monitor.manager.unregister(resource)


def test_found_dies_and_hooks_go(monitor: ResourceMonitor, mosquitto: servers.Mosquitto) -> None:
    monitor.discover_resources("message_broker")
    client = connect(mosquitto)
    reference = weakref.ref(client)
    wait_until(lambda: monitor.manager.of(reference()), 5, "found")
    resource = monitor.manager.of(client)
    assert "Client.publish" in hooked("paho")
    bye(client)
    del client
    wait_until(lambda: (gc.collect(), reference())[1] is None, 10, "the client goes")
    wait_until(lambda: resource not in monitor.manager, 10, "the resource leaves")
    monitor.stop()
    assert hooked("paho", "aiomqtt") == []
