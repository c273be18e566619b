"""Calculates rates, means and quantiles from the samples of two scrapes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.metrics_core import Metric as Family

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Scraped:
    """The samples of one scrape. Samples of several workers have different labels."""

    time: float
    """Time of the scrape, by time.monotonic."""
    samples: dict[str, dict[Labels, float]] = field(default_factory=lambda: defaultdict(dict))
    """Values by name and labels."""

    @classmethod
    def of(cls, time: float, families: Iterable[Family]) -> "Scraped":
        """Returns the samples of metric families."""
        scraped = cls(time)
        for family in families:
            for sample in family.samples:
                scraped.samples[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
        return scraped

    def values(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yields all labels and the value of each sample that has these labels."""
        required = labels.items()
        for key, value in self.samples.get(name, {}).items():
            if required <= (all_labels := dict(key)).items():
                yield all_labels, value

    def total(self, name: str, **labels: str) -> float:
        """Returns the sum of the samples that have these labels."""
        return sum(value for _, value in self.values(name, **labels))

    def label_values(self, name: str, label: str) -> list[str]:
        """Returns the values of a label, sorted."""
        return sorted({labels[label] for labels, _ in self.values(name) if label in labels})


@dataclass(frozen=True, slots=True)
class Between:
    """The interval between two scrapes."""

    before: Scraped
    now: Scraped

    @property
    def seconds(self) -> float:
        """Length of the interval in seconds."""
        return max(self.now.time - self.before.time, 1e-9)

    def growth(self, name: str, **labels: str) -> float:
        """Returns the increase of counters. A counter that has become smaller was reset to 0 in between."""
        before = self.before.samples.get(name, {})
        total = 0.0
        for all_labels, value in self.now.values(name, **labels):
            previous = before.get(tuple(sorted(all_labels.items())), 0.0)
            total += value - previous if value >= previous else value
        return total

    def rate(self, name: str, **labels: str) -> float:
        """Returns the increase of counters per second."""
        return self.growth(name, **labels) / self.seconds

    def mean(self, name: str, **labels: str) -> float | None:
        """Returns the mean of the values that a histogram observed in the interval; None without values."""
        count = self.growth(f"{name}_count", **labels)
        return self.growth(f"{name}_sum", **labels) / count if count else None

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """Estimates a quantile (0 to 1) of the values that a histogram observed; None without values.

        It interpolates linearly within a bucket, as Prometheus does. Above the last bound, it is that bound.
        """
        bounds = sorted({float(found["le"]) for found, _ in self.now.values(f"{name}_bucket", **labels)})
        counts = [self._cumulative_count(name, bound, labels) for bound in bounds]
        if not counts or not counts[-1]:
            return None
        rank = share * counts[-1]
        for (low, below), (high, count) in pairwise([(0.0, 0.0), *zip(bounds, counts, strict=True)]):
            if count >= rank:
                if high == float("inf"):
                    return low
                return low + (high - low) * (rank - below) / (count - below)
        return None

    def _cumulative_count(self, name: str, bound: float, labels: dict[str, str]) -> float:
        """Returns the number of values up to a bound that were observed in the interval."""
        # Labels with the same number may differ as text.
        texts = [le for le in self.now.label_values(f"{name}_bucket", "le") if float(le) == bound]
        return sum(self.growth(f"{name}_bucket", le=le, **labels) for le in texts)
