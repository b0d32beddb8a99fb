"""How is a RabbitMQ server watched that has the management plug-in? By asking its HTTP API for the queues.

It knows what a client does not: what was given out and is not acknowledged, and how well consumers keep up. Its
numbers are some seconds old.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection, Mapping
from time import monotonic
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from uno.core.monitoring.causes import describe_error
from uno.core.monitoring.instrumentation import stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._probe import Asking, Probe
from uno.core.monitoring.thresholds import Threshold
from uno.core.resources import Identity, Resource

MAX_QUEUES = 100
#: The plug-in renews its own numbers every 5 s.
ASK_SECONDS = 5.0
#: For the whole of a question, and for each wait within it.
QUESTION_SECONDS, SOCKET_SECONDS = 4.0, 2.0
MAX_BYTES = 1 << 20
_NAME, _GROUP = "messaging.destination.name", "messaging.consumer.group.name"
_COLUMNS = "name,messages_ready,messages_unacknowledged,consumers,consumer_utilisation,consumer_capacity"

#: By queue: messages ready, unacknowledged, consumers, the share of time in which consumers took more.
Queues = dict[str, tuple[float | None, float | None, float | None, float | None]]


class RabbitMQManagement:
    """The HTTP API of a RabbitMQ server's management plug-in, for one virtual host.

    Register it, and its queues are watched:
    ``manager.register(RabbitMQManagement("http://rabbit:15672", user="watcher", password=...))``. The user needs the
    tag ``monitoring``, or ``management`` for its own virtual hosts. Nothing is asked unless it is registered.
    ``queues`` are the names to watch; without them it is the first hundred.

    Raises ValueError for a URL that is none; the message never holds it, since it may carry a password.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        virtual_host: str = "/",
        queues: Collection[str] = (),
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except (ValueError, AttributeError):
            parts, port = urlsplit(""), 0
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError('the URL of the management API looks like "http://rabbit.example:15672"')
        if isinstance(queues, str):
            raise ValueError(f"queues is a collection of names: queues=[{queues!r}]")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.place = f"{host}:{port}"
        self.virtual_host = virtual_host
        self.queues = frozenset(queues)
        self._base = f"{parts.scheme}://{self.place}{parts.path.rstrip('/')}"
        self._user = unquote(parts.username or "guest") if user is None else user
        self._password = unquote(parts.password or "") if password is None else password
        self._ssl_context = ssl_context

    def __repr__(self) -> str:
        return f"<RabbitMQManagement {self.place}>"

    def read(self) -> Queues:
        """Ask, for some seconds at most. Raises OSError, or ValueError for an answer that is none."""
        import base64
        import json
        from urllib.request import Request

        key = base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        path = f"/api/queues/{quote(self.virtual_host, safe='')}?page=1&page_size=500&columns={_COLUMNS}"
        request = Request(self._base + path, headers={"Accept": "application/json"})
        request.add_unredirected_header("Authorization", f"Basic {key}")
        until = monotonic() + QUESTION_SECONDS
        body = bytearray()
        with _opener(self._ssl_context).open(request, timeout=SOCKET_SECONDS) as answer:
            while piece := answer.read1(65_536):
                body += piece
                if len(body) > MAX_BYTES or monotonic() > until:
                    raise TimeoutError("the answer does not end")
        found: Queues = {}
        for queue in json.loads(body)["items"]:
            if not self.queues or queue["name"] in self.queues:
                took = queue.get("consumer_capacity", queue.get("consumer_utilisation"))
                told = (
                    queue.get("messages_ready"),
                    queue.get("messages_unacknowledged"),
                    queue.get("consumers"),
                    took,
                )
                found[queue["name"]] = tuple(
                    float(value) if isinstance(value, int | float) else None for value in told
                )  # type: ignore[assignment]
            if len(found) >= MAX_QUEUES:
                break
        return found


def _opener(context: ssl.SSLContext | None) -> Any:
    """Goes to the server itself: through no proxy, and nowhere that an answer points to."""
    from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, build_opener

    class Stays(HTTPRedirectHandler):
        def redirect_request(self, *args: Any, **kwargs: Any) -> None:
            return None

    return build_opener(ProxyHandler({}), Stays(), HTTPSHandler(context=context))


class RabbitMQManagementMonitor(Asking):
    """The queues of a RabbitMQ server, by the API of its management plug-in: ready, unacknowledged, consumers.

    Nothing is asked unless the application registers a `RabbitMQManagement` ([how](custom-resources.md#rabbitmq)). It
    is asked every 5 s; its numbers are 5 to 10 s old, and those of a new queue unknown until then. Utilization is the
    share of the time in which consumers took what was there at once.
    """

    resource_type = "message_broker"
    targets = (f"{__name__}.RabbitMQManagement",)
    blocking = False
    metrics = pick(
        "messaging.destination.depth",
        "uno.messaging.consumer.pending",
        "messaging.consumer.count",
        "uno.messaging.consumer.utilization",
        "messaging.client.connection.up",
        "uno.resource.errors",
    )
    headline = (
        "messaging.destination.depth",
        "uno.messaging.consumer.pending",
        "uno.messaging.consumer.utilization",
    )
    thresholds = (
        (
            "messaging.client.connection.up",
            Threshold(None, 0.5, "The management API does not answer", direction="below", for_=10),
        ),
        ("messaging.destination.depth", Threshold(1_000, 10_000, "Messages pile up in the queue", for_=10)),
    )

    def identify(self, target: RabbitMQManagement) -> Identity:
        vhost = "" if target.virtual_host == "/" else target.virtual_host
        return Identity("rabbitmq", f"{target.place}/{vhost}")

    def attach(self, target: RabbitMQManagement) -> None:
        stat_of(target)

    def probe(self, target: RabbitMQManagement) -> Probe[Any]:
        extra = stat_of(target).extra
        found: Probe[Any] | None = extra.get("probe")
        return found or extra.setdefault("probe", Probe(target, self.question, None, every=ASK_SECONDS))

    def question(self, target: RabbitMQManagement) -> Queues:
        stat = stat_of(target)
        try:
            found = target.read()
        except Exception as error:
            stat.failed(error)
            code = getattr(error, "code", None)
            if isinstance(code, int):
                stat.last_error_kind = f"HTTP {code}"
            raise
        stat.last_ok = monotonic()
        return found

    def is_up(self, target: RabbitMQManagement) -> bool:
        stat = stat_of(target)
        return self.probe(target).is_fresh() and stat.last_ok >= stat.last_error

    def collect_metrics(self, resource: Resource) -> None:
        target, update = resource.target, self.update_metric
        stat, probe = stat_of(target), self.probe(resource.target)
        asked = stat.last_ok or stat.last_error
        update("messaging.client.connection.up", self.is_up(target) if asked else None)
        update("uno.resource.errors", stat.errors)
        for name, (ready, unacknowledged, consumers, took) in (self.answer(target) or {}).items():
            queue = {_NAME: name}
            update("messaging.destination.depth", ready, queue)
            update("uno.messaging.consumer.pending", unacknowledged, {**queue, _GROUP: ""})
            update("messaging.consumer.count", consumers, queue)
            update("uno.messaging.consumer.utilization", took if consumers else None, queue)
        probe.on_thread()

    def statistics(self, target: RabbitMQManagement) -> Mapping[str, float | None]:
        found: Queues = self.answer(target) or {}
        ready = [n for n, *_ in found.values() if n is not None]
        given = [n for _, n, *_ in found.values() if n is not None]
        return {
            "connected": self.is_up(target),
            "queue_depth": sum(ready) if ready else None,
            "unacknowledged": sum(given) if given else None,
            "errors": stat_of(target).errors.value,
        }

    def ping(self, target: RabbitMQManagement) -> bool | None:
        """From the last question. ConnectionError when it was not answered."""
        stat = stat_of(target)
        if stat.last_error > stat.last_ok:
            raise ConnectionError("not answered")
        return True if self.is_up(target) else None

    def explain(self, target: RabbitMQManagement, metric: str) -> str:
        found: Queues = self.answer(target) or {}
        deepest = sorted(((n, name) for name, (n, *_) in found.items() if n), reverse=True)[:3]
        parts = [f"{n:g} ready in {name} with {found[name][2] or 0:g} consumers" for n, name in deepest]
        return "; ".join(filter(None, [*parts, describe_error(stat_of(target))]))
