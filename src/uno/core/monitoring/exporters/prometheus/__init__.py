"""How does Prometheus, or anything else that scrapes, read uno? From the last tick, in the format it asks for.

A scrape goes through these modules from the top down::

    asgi, serve        the request: a path of an application, or a port of its own
    negotiation        which format, which escaping of names, compressed or not
    exporter           which series, and what is kept between two scrapes
    page               the work in small steps, so that no event loop is held
    layout             series by family, in chunks whose bytes are made again only when a number changed
    text, protobuf     how a family looks in a format
    state              resources, their health, alerts
    bridge, collector  prometheus_client's metrics in our page, and ours in theirs

Sources: prometheus.io, "Exposition formats", "Scrape protocol content negotiation", "UTF-8 metric and label name
escaping schemes"; OpenMetrics 1.0 and 2.0-rc0; io/prometheus/client/metrics.proto of prometheus/client_model.
"""

from uno.core.monitoring.exporters.prometheus.collector import as_collector
from uno.core.monitoring.exporters.prometheus.exporter import PrometheusExporter
from uno.core.monitoring.exporters.prometheus.negotiation import Format, negotiate

__all__ = ["Format", "PrometheusExporter", "as_collector", "negotiate"]
