"""What the server counts, in Prometheus' form: requests, images, batches, what waits, what adapters take."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sdlora.serving.batches import Batches

_SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Figures:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sdlora_requests", "Requests for images by HTTP status", ["status"], registry=self._registry
        )
        self._seconds = Histogram(
            "sdlora_request_seconds",
            "From a request for images to its answer",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._images = Counter("sdlora_images", "Images generated", registry=self._registry)
        self._batches = Histogram("sdlora_batch_images", "Images in one pass", buckets=_IMAGES, registry=self._registry)
        self._pass_seconds = Counter("sdlora_batch_seconds", "Time spent generating", registry=self._registry)

    def watch(self, batches: Batches) -> None:
        """Ask the queue for its state whenever the figures are read."""
        Gauge("sdlora_waiting_images", "Images that wait for their turn", registry=self._registry).set_function(
            lambda: batches.waiting
        )
        Gauge("sdlora_adapter_bytes", "Memory of the adapters that are kept", registry=self._registry).set_function(
            lambda: 0 if batches.generator is None else batches.generator.adapter_bytes
        )
        Gauge("sdlora_ready", "1 when the model is loaded", registry=self._registry).set_function(
            lambda: int(batches.generator is not None)
        )

    def count_request(self, status: int, seconds: float) -> None:
        """A request for images was answered."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def count_batch(self, num_images: int, seconds: float) -> None:
        """A pass is done."""
        self._batches.observe(num_images)
        self._images.inc(num_images)
        self._pass_seconds.inc(seconds)

    def as_text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return bytes(generate_latest(self._registry))
