"""Counts and times of a server, as Prometheus reads them. Only the thread of the event loop changes and reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

Labels = tuple[str, ...]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Family:
    """Values of one name, by the values of their labels. ``read`` gives values that are not kept here."""

    kind = "gauge"

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str],
        read: Callable[[], Iterable[tuple[Labels, float]]] | None = None,
    ) -> None:
        self.name, self.help, self.labels, self._read = name, help, tuple(labels), read
        self._values: dict[Labels, float] = {}

    def lines(self) -> Iterator[str]:
        """The lines of the text format."""
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        yield from self._samples()

    def _samples(self) -> Iterator[str]:
        for labels, value in self._read() if self._read else self._values.items():
            yield self._sample("", labels, value)

    def _sample(self, suffix: str, labels: Labels, value: float, *more: tuple[str, str]) -> str:
        pairs = [*zip(self.labels, labels, strict=True), *more]
        inner = ",".join(f'{name}="{_escaped(text)}"' for name, text in pairs)
        return f"{self.name}{suffix}{{{inner}}} {value!r}"


class Counter(Family):
    """Counts that only grow."""

    kind = "counter"

    def add(self, *labels: str, amount: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0) + amount


class Histogram(Family):
    """How many observed values were at most as large as each of ``bounds``, with their sum and number."""

    kind = "histogram"

    def __init__(self, name: str, help: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        super().__init__(name, help, labels)
        self._bounds = tuple(bounds)
        self._counts: dict[Labels, list[int]] = {}

    def observe(self, value: float, *labels: str) -> None:
        counts = self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
        counts[bisect_left(self._bounds, value)] += 1
        self._values[labels] = self._values.get(labels, 0.0) + value

    def _samples(self) -> Iterator[str]:
        for labels, counts in self._counts.items():
            total = 0
            for bound, count in zip((*map(repr, self._bounds), "+Inf"), counts, strict=True):
                total += count
                yield self._sample("_bucket", labels, total, ("le", bound))
            yield self._sample("_sum", labels, self._values[labels])
            yield self._sample("_count", labels, total)


SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Metrics:
    """All families of a server. ``model``: ``NAME-encode`` or ``NAME-decode``, empty where a request names none that
    exists, so that strangers cannot make labels.
    """

    def __init__(self) -> None:
        self.requests = Counter("vaedeploy_requests_total", "Requests to a model, by status.", ("model", "status"))
        self.failures = Counter("vaedeploy_failures_total", "Requests without a result.", ("model", "reason"))
        self.items = Histogram("vaedeploy_batch_items", "Items of a call of a model.", ("model",), ITEMS)
        self.joined = Histogram("vaedeploy_batch_requests", "Requests that a call answered.", ("model",), ITEMS)
        self.queued = Histogram("vaedeploy_queue_seconds", "Time of a request in the queue.", ("model",), SECONDS)
        self.computed = Histogram("vaedeploy_compute_seconds", "Time of a call of a model.", ("model",), SECONDS)
        self.families: list[Family] = [
            self.requests,
            self.failures,
            self.items,
            self.joined,
            self.queued,
            self.computed,
        ]

    def text(self) -> str:
        """All values in Prometheus' text format."""
        return "".join(f"{line}\n" for family in self.families for line in family.lines())


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
