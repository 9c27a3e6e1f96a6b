"""The counters that /metrics tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("requests", "Answers.", ["route", "status"], registry=registry)
        self.latency = Histogram("request_seconds", "To the answer.", ["route"], buckets=SECONDS, registry=registry)
        self.answers = Counter("answers", "Images, by what was said.", ["decision"], registry=registry)
        self.queued = Gauge("queued_images", "Images that wait for the model.", registry=registry)
        self.active = Gauge("active_requests", "Requests that are being answered.", registry=registry)
        self.wait = Gauge("expected_wait_seconds", "Of a request that came now.", registry=registry)
        self.batches = Histogram("batch_size", "Images run together.", buckets=SIZES, registry=registry)
        self.inference = Histogram("inference_seconds", "Of a batch.", buckets=SECONDS, registry=registry)
        self.reloads = Counter("model_reloads", "Newer model files.", ["outcome"], registry=registry)
        for decision in ("answered", "unsure", "unfamiliar", "failed"):
            self.answers.labels(decision)
        for outcome in ("loaded", "refused"):
            self.reloads.labels(outcome)

    def observe_batch(self, size: int, seconds: float) -> None:
        self.batches.observe(size)
        self.inference.observe(seconds)
