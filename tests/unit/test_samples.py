"""What `status` makes of two scrapes."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from store_service.observability.samples import Between, Scraped


def at(time: float, text: str) -> Scraped:
    return Scraped.of(time, text_string_to_metric_families(text))


def test_rates_are_per_second_over_all_labels() -> None:
    """Also of a counter that was not there before."""
    between = Between(
        at(10, 'a_total{m="x"} 5\n'),
        at(12, 'a_total{m="x"} 9\na_total{m="y"} 2\n'),
    )

    assert between.rate("a_total") == 3
    assert between.rate("a_total", m="x") == 2
    assert between.rate("a_total", m="z") == 0


def test_counter_reset_counts_from_zero() -> None:
    """As that of a process that was started again."""
    between = Between(at(0, 'a_total{worker="0"} 100\n'), at(1, 'a_total{worker="0"} 7\n'))

    assert between.growth("a_total") == 7


HISTOGRAM = """\
# TYPE h histogram
h_bucket{{worker="{w}",le="1.0"}} {low}
h_bucket{{worker="{w}",le="2.0"}} {high}
h_bucket{{worker="{w}",le="+Inf"}} {all}
h_sum{{worker="{w}"}} {sum}
h_count{{worker="{w}"}} {all}
"""


@pytest.mark.parametrize(("share", "value"), [(0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (1.0, 2.0)])
def test_quantiles_combine_all_workers(share: float, value: float) -> None:
    before = at(0, HISTOGRAM.format(w=0, low=50, high=50, all=50, sum=1))
    one = HISTOGRAM.format(w=0, low=54, high=58, all=58, sum=11).splitlines()
    two = HISTOGRAM.format(w=1, low=4, high=8, all=8, sum=10).splitlines()[1:]
    between = Between(before, at(1, "\n".join([*one, *two]) + "\n"))

    assert between.quantile("h", share) == pytest.approx(value)
    assert between.mean("h") == pytest.approx(20 / 16)


def test_value_above_all_bounds_is_the_last_bound() -> None:
    """Nothing more is known of it."""
    between = Between(at(0, ""), at(1, HISTOGRAM.format(w=0, low=0, high=0, all=4, sum=40)))

    assert between.quantile("h", 0.99) == 2.0


def test_empty_histogram_has_no_mean_and_no_quantile() -> None:
    """Rather than zero."""
    text = HISTOGRAM.format(w=0, low=1, high=1, all=1, sum=1)
    between = Between(at(0, text), at(1, text))

    assert between.mean("h") is None
    assert between.quantile("h", 0.5) is None
    assert between.quantile("unknown", 0.5) is None
