"""What /metrics tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Counters:
    """The counters of one server; a registry of its own, so that several servers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "refseg_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "refseg_request_seconds",
            "Seconds from a request's first byte to its answer.",
            ["path"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.inside = Gauge(
            "refseg_requests_inside", "Requests that are received, wait or are computed.", registry=self.registry
        )
        self.batch = Histogram(
            "refseg_batch_requests", "Requests computed together.", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32)
        )
        self.photos = Counter(
            "refseg_photos",
            "Photographs asked about: encoded, or found in the cache.",
            ["how"],
            registry=self.registry,
        )
        self.cached_photos = Gauge("refseg_cached_photos", "Encoded photographs that are kept.", registry=self.registry)
        self.cached_bytes = Gauge("refseg_cached_bytes", "Memory that they take, in bytes.", registry=self.registry)
        self.replaced = Counter(
            "refseg_workers_replaced", "Processes with the model that died or hung.", registry=self.registry
        )

        self.lag = Histogram(
            "refseg_loop_lag_seconds",
            "How late the server's loop was at what it had set itself for a time, in seconds.",
            registry=self.registry,
            buckets=_SECONDS,
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
