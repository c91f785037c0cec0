"""What operators watch, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from adtr.prediction import Prediction

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class ServerMetrics:
    """The server's own registry.

    Good images' p-values are spread evenly over 0 to 1: `adtr_p_value` shows where a line drifts away from what the
    model has learned, long before many verdicts change.

    Args:
        in_work: tells the number of images in the queue and beyond it, until their answers are ready.
    """

    def __init__(self, in_work: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "adtr_requests", "Requests by route and status.", ["method", "route", "status"], registry=self._registry
        )
        self.latency = Histogram(
            "adtr_request_seconds", "From the head of a request to the end of its answer.", ["route"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.rejected = Counter("adtr_rejected", "Requests refused, by reason.", ["reason"], registry=self._registry)
        self._images = Counter("adtr_images", "Images judged.", ["model", "verdict"], registry=self._registry)
        self._p_values = Histogram(
            "adtr_p_value", "P-values of the images judged.", ["model"], buckets=_SHARES, registry=self._registry
        )
        self._batches = Histogram(
            "adtr_batch_images", "Images in a forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry
        )
        self._pass_seconds = Counter("adtr_pass_seconds", "Time in forward passes.", registry=self._registry)
        queue = Gauge("adtr_queue_images", "Images that were accepted and not yet answered.", registry=self._registry)
        queue.set_function(in_work)
        self.loaded = Gauge(
            "adtr_model_loaded_timestamp_seconds", "When each model was loaded.", ["model"], registry=self._registry
        )

    def count(self, model: str, prediction: Prediction) -> None:
        """An image was judged."""
        self._images.labels(model, prediction.verdict).inc()
        self._p_values.labels(model).observe(prediction.p_value)

    def count_batch(self, images: int, seconds: float) -> None:
        """A forward pass was run."""
        self._batches.observe(images)
        self._pass_seconds.inc(seconds)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
