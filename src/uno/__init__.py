"""uno shows what a service's resources (pools, clients, queues, threads, files) are doing."""

__version__ = "0.1.0"
