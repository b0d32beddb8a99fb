"""How are clients of smtplib watched? A type that hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from uno.core.monitoring.causes import describe_error, describe_slow
from uno.core.monitoring.instrumentation import Stat, failures, install, stat_of
from uno.core.monitoring.metrics import Spec
from uno.core.monitoring.names import pick
from uno.core.monitoring.resources import ResourceTypeMonitor
from uno.core.monitoring.thresholds import Threshold
from uno.core.resources import Identity, Resource


class SmtpMonitor(ResourceTypeMonitor):
    """Mails of an SMTP client: how many, how long, which failed, from which line."""

    resource_type = "smtp"
    targets = ("smtplib.SMTP",)
    library = "smtplib"
    blocking = False
    metrics = (
        *pick("uno.resource.errors"),
        Spec("smtp.send.duration", "histogram", "Duration of sending a mail", "s", (), "Sending"),
        Spec("smtp.connected", "gauge", "1 while connected, 0 while not", "", (), "Connected"),
    )
    headline = ("smtp.send.duration", "uno.resource.errors")
    thresholds = (("smtp.send.duration", Threshold(2, 10, "Sending mail is slow")),)

    def identify(self, target: Any) -> Identity:
        # Of the fields that a client has, these two are harmless; `password` is not.
        host = getattr(target, "_host", "") or ""
        sock = getattr(target, "sock", None)
        try:
            host, port = sock.getpeername()[:2] if sock is not None else (host, None)
        except OSError:
            port = None
        return Identity("smtp", f"{host}:{port}" if port else host or None)

    def install(self) -> list[Callable[[], None]]:
        return [install(sys.modules["smtplib"].SMTP, "sendmail", _sendmail)]

    def attach(self, target: Any) -> None:
        stat_of(target)

    def collect_metrics(self, resource: Resource) -> None:
        client = resource.target
        stat = stat_of(client)
        self.update_metric("smtp.send.duration", stat.duration)
        self.update_metric("smtp.connected", getattr(client, "sock", None) is not None)
        self.update_metric("uno.resource.errors", stat.errors)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = stat_of(target)
        return {"mails": stat.total.value, "errors": stat.errors.value}

    def explain(self, target: Any, metric: str) -> str:
        stat = stat_of(target)
        return "; ".join(filter(None, (describe_slow(stat), describe_error(stat))))


def _sendmail(original: Any) -> Any:
    """Times a mail. The application's call goes through whatever happens to the numbers."""

    def sendmail(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        try:
            refused = original(self, *args, **kwargs)
        except BaseException as error:
            _note(self, start, error)
            raise
        _note(self, start)
        return refused

    return sendmail


def _note(client: Any, start: float, error: BaseException | None = None) -> None:
    try:
        stat: Stat = stat_of(client)
        stat.done(perf_counter() - start, error)
    except Exception as failure:  # noqa: BLE001 - a hook never fails the call
        failures("SMTP.sendmail", failure)
