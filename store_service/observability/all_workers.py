"""Combines the metrics of all workers on one address. The label `worker` has the number of the worker.

The writer process of SQLite has the label `writer`.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from store_service.observability.catalog import METRICS
from store_service.observability.scrape import NoMetrics, scrape


class AllWorkersCollector(Collector):
    """Collects the metrics of all workers. A restart of a worker resets its counters, as in any process."""

    def __init__(self, addresses: Mapping[str, str], restarts: Mapping[str, int]) -> None:
        """Takes the metrics address and the number of restarts of each process. Both may change later."""
        self._addresses = addresses
        self._restarts = restarts

    def collect(self) -> Iterator[Family]:
        """Scrapes all workers in parallel. A worker that does not respond is left out."""
        up = GaugeMetricFamily("store_worker_up", METRICS["store_worker_up"].help, labels=["worker"])
        restarts = CounterMetricFamily(
            "store_worker_restarts_total", METRICS["store_worker_restarts_total"].help, labels=["worker"]
        )
        merged: dict[str, Family] = {}
        with ThreadPoolExecutor(max_workers=min(len(self._addresses), 32)) as pool:
            scrapes = pool.map(_scrape, self._addresses.values())
            for label_value, families in zip(self._addresses, scrapes, strict=True):
                label = {"worker": label_value}
                up.add_metric([label_value], float(families is not None))
                restarts.add_metric([label_value], self._restarts[label_value])
                for family in families or ():
                    combined = merged.setdefault(
                        family.name, Family(family.name, family.documentation, family.type)
                    )
                    combined.samples += [
                        sample._replace(labels=label | sample.labels) for sample in family.samples
                    ]
        yield from (up, restarts, *merged.values())


def _scrape(address: str) -> list[Family] | None:
    try:
        return scrape(address)
    except NoMetrics:
        return None
