"""Metrics of the tagging service, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters, gauges and histograms, as `/metrics` gives them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "datafree_requests",
            "Requests for tags or regions",
            ["path", "status"],
            registry=registry,
        )
        self.images = Counter(
            "datafree_images", "Images, tagged or refused", ["outcome"], registry=registry
        )
        self.second_tries = Counter(
            "datafree_second_tries",
            "Calls that were repeated because a model died",
            registry=registry,
        )
        self.waiting = Gauge(
            "datafree_waiting_images", "Images that wait for their results", registry=registry
        )
        self.seconds = Histogram(
            "datafree_request_seconds",
            "Seconds to answer a request for tags or regions",
            ["path"],
            buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
            registry=registry,
        )

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)
