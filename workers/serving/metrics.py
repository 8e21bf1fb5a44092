"""What the tagging service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Measures:
    """What `/metrics` tells, in Prometheus's text format."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "datafree_requests",
            "Requests for tags or regions",
            ["path", "status"],
            registry=registry,
        )
        self.images = Counter(
            "datafree_images", "Images by what became of them", ["outcome"], registry=registry
        )
        self.second_tries = Counter(
            "datafree_second_tries", "Questions to a model that died", registry=registry
        )
        self.waiting = Gauge("datafree_waiting_images", "Images under way", registry=registry)
        self.seconds = Histogram(
            "datafree_request_seconds",
            "Time of a request for tags or regions",
            ["path"],
            buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
            registry=registry,
        )

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)
