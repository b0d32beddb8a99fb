"""Is what the application hands over of the right kind?"""

from __future__ import annotations

from uno.core.resources.errors import shown


def check_monitor(
    manager: object,
    manager_class: type,
    interval: object,
    collect_timeout: object,
    service: object,
    history: object,
    discover: object,
) -> None:
    """The arguments of a ResourceMonitor. TypeError and ValueError that name the one that is wrong."""
    if not (_is_number(interval) and 0.01 <= interval <= 3600):  # type: ignore[operator]
        raise ValueError(f"interval is 0.01 to 3600 seconds, not {shown(interval)}")
    if manager is not None and not isinstance(manager, manager_class):
        raise TypeError(f"ResourceMonitor takes a ResourceManager, not {type(manager).__name__}")
    if collect_timeout is not None and not (_is_number(collect_timeout) and 0 < collect_timeout <= 3600):  # type: ignore[operator]
        raise ValueError(
            f"collect_timeout is more than 0 and at most 3600 seconds, not {shown(collect_timeout)}"
        )
    if service is not None and not isinstance(service, str):
        raise TypeError(f"service= is the name of the service, not {type(service).__name__}")
    if history is not None and not all(
        callable(getattr(history, of, None)) for of in ("append", "summaries")
    ):
        raise TypeError(f"history= is a MemoryHistory or another History, not {type(history).__name__}")
    if not isinstance(discover, bool):
        raise TypeError(
            f"discover= is True or False, not {type(discover).__name__}; for one type call discover_resources()"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
