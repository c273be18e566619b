"""The metrics of all processes on one address: asks each and tells them apart by the label `worker`."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from store_service.observability.catalog import METRICS
from store_service.observability.scrape import NoMetrics, scrape


class AllWorkersCollector(Collector):
    """The metrics of every worker. One that restarts begins at zero again, as Prometheus expects."""

    def __init__(self, addresses: Mapping[int, str], restarts: Mapping[int, int]) -> None:
        """Takes where each worker serves its own, and how often it was restarted, which may change."""
        self._addresses = addresses
        self._restarts = restarts

    def collect(self) -> Iterator[Family]:
        """Asks all workers at once; one that does not answer is left out."""
        up = GaugeMetricFamily("store_worker_up", METRICS["store_worker_up"].help, labels=["worker"])
        restarts = CounterMetricFamily(
            "store_worker_restarts_total", METRICS["store_worker_restarts_total"].help, labels=["worker"]
        )
        merged: dict[str, Family] = {}
        with ThreadPoolExecutor(max_workers=min(len(self._addresses), 32)) as pool:
            answers = pool.map(_scraped, self._addresses.values())
            for number, families in zip(self._addresses, answers, strict=True):
                label = {"worker": str(number)}
                up.add_metric([str(number)], float(families is not None))
                restarts.add_metric([str(number)], self._restarts[number])
                for family in families or ():
                    whole = merged.setdefault(
                        family.name, Family(family.name, family.documentation, family.type)
                    )
                    whole.samples += [
                        sample._replace(labels=label | sample.labels) for sample in family.samples
                    ]
        yield from (up, restarts, *merged.values())


def _scraped(address: str) -> list[Family] | None:
    try:
        return scrape(address)
    except NoMetrics:
        return None
