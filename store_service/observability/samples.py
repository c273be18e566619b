"""What the counters of two moments say together: rates, means and quantiles."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.metrics_core import Metric as Family

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Scraped:
    """The samples of one scrape; those of several workers are told apart by their labels."""

    time: float
    """When, by time.monotonic."""
    samples: dict[str, dict[Labels, float]] = field(default_factory=lambda: defaultdict(dict))
    """By name, then by labels."""

    @classmethod
    def of(cls, time: float, families: Iterable[Family]) -> "Scraped":
        """Sorts the samples of families."""
        scraped = cls(time)
        for family in families:
            for sample in family.samples:
                scraped.samples[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
        return scraped

    def values(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """The samples that have these labels, with all that they have."""
        wanted = labels.items()
        for found, value in self.samples.get(name, {}).items():
            if wanted <= (of := dict(found)).items():
                yield of, value

    def total(self, name: str, **labels: str) -> float:
        """Their sum."""
        return sum(value for _, value in self.values(name, **labels))

    def label(self, name: str, label: str) -> list[str]:
        """Which values a label has, in order."""
        return sorted({of[label] for of, _ in self.values(name) if label in of})


@dataclass(frozen=True, slots=True)
class Between:
    """What happened between two scrapes."""

    before: Scraped
    now: Scraped

    @property
    def seconds(self) -> float:
        """How long lies between them."""
        return max(self.now.time - self.before.time, 1e-9)

    def growth(self, name: str, **labels: str) -> float:
        """How much counters have grown; one that is smaller than before has begun at zero again."""
        before = self.before.samples.get(name, {})
        grown = 0.0
        for of, value in self.now.values(name, **labels):
            was = before.get(tuple(sorted(of.items())), 0.0)
            grown += value - was if value >= was else value
        return grown

    def rate(self, name: str, **labels: str) -> float:
        """The same for each second."""
        return self.growth(name, **labels) / self.seconds

    def mean(self, name: str, **labels: str) -> float | None:
        """The mean of what a histogram has counted; None if it was nothing."""
        count = self.growth(f"{name}_count", **labels)
        return self.growth(f"{name}_sum", **labels) / count if count else None

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """Below which value `share` of what a histogram has counted lies, about; None if it was nothing.

        Within a bucket values are taken to be spread evenly, as Prometheus does.
        """
        bounds = sorted({float(of["le"]) for of, _ in self.now.values(f"{name}_bucket", **labels)})
        counts = [self._below(name, bound, labels) for bound in bounds]
        if not counts or not counts[-1]:
            return None
        wanted = share * counts[-1]
        for (low, below), (high, count) in pairwise([(0.0, 0.0), *zip(bounds, counts, strict=True)]):
            if count >= wanted:
                if high == float("inf"):
                    return low
                return low + (high - low) * (wanted - below) / (count - below)
        return None

    def _below(self, name: str, bound: float, labels: dict[str, str]) -> float:
        texts = [le for le in self.now.label(f"{name}_bucket", "le") if float(le) == bound]
        return sum(self.growth(f"{name}_bucket", le=le, **labels) for le in texts)
