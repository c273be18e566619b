"""Dashboard, alerts and their manual speak of the metrics that there are, and of all of them."""

import json
import re
from typing import Any

import grpc
import promql_parser
import pytest
import yaml

from store_service.observability.catalog import METRICS
from store_service.observability.collector import MetricsCollector
from store_service.observability.metrics import Metrics
from store_service.rpc.status import ROWS
from store_service.server import service_descriptors
from tests.support.repository import ROOT

MANUAL = "docs/alerts-and-metrics.md"
TEXT = (ROOT / MANUAL).read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana.json").read_text())
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
alerts = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
OF_PROMETHEUS = {"job", "instance"}
"""Labels that it adds to what it scrapes."""
METRICS_OF_PROMETHEUS = {"up"}
"""What it tells of its own, of everything that it looks for."""


def panel_expressions() -> list[str]:
    """What the panels ask for, with Grafana's variables filled in."""
    return [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


EXPRESSIONS = [*panel_expressions(), *(alert["expr"] for alert in ALERTS)]


def parts(expression: str) -> list[Any]:
    """Every part of an expression."""
    found: list[Any] = []

    def walk(part: Any) -> None:
        found.append(part)
        for name in ("lhs", "rhs", "expr", "vector_selector", "param"):
            if (below := getattr(part, name, None)) is not None:
                walk(below)
        for below in getattr(part, "args", None) or ():
            walk(below)

    walk(promql_parser.parse(expression))
    return found


def family_of(sample: str) -> str:
    """The metric that a sample belongs to."""
    family = re.sub(r"_(bucket|sum|count)$", "", sample)
    return family if METRICS.get(family) and METRICS[family].kind == "histogram" else sample


def selectors(expression: str) -> list[Any]:
    """Which samples an expression asks for."""
    return [part for part in parts(expression) if isinstance(part, promql_parser.VectorSelector)]


# Dashboard and alerts


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_referenced_metric_exists(expression: str) -> None:
    """With the labels of its selector and the suffix of its type."""
    found = selectors(expression)

    assert family_of("up") not in METRICS
    assert any(selector.name not in METRICS_OF_PROMETHEUS for selector in found)
    for selector in found:
        if selector.name in METRICS_OF_PROMETHEUS:
            assert {matcher.name for matcher in selector.matchers.matchers} <= OF_PROMETHEUS
            continue
        family = family_of(selector.name)
        assert family in METRICS
        assert (METRICS[family].kind == "histogram") == (family != selector.name)
        known = {*METRICS[family].labels, *OF_PROMETHEUS, "worker"}
        assert {matcher.name for matcher in selector.matchers.matchers} <= known


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_grouping_label_exists(expression: str) -> None:
    """On the metric that is grouped."""
    labels = {
        label
        for part in parts(expression)
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None
        for label in part.modifier.labels
    }
    known = {
        label
        for it in selectors(expression)
        if it.name not in METRICS_OF_PROMETHEUS
        for label in METRICS[family_of(it.name)].labels
    }

    assert labels <= known | OF_PROMETHEUS | {"worker", "le"}


def test_quantiles_group_by_le() -> None:
    """Otherwise Prometheus returns wrong values without an error."""
    found = [it for it in EXPRESSIONS if "histogram_quantile" in it]

    assert len(found) > 10
    assert [it for it in found if not re.search(r"sum by \([^)]*\ble\)", it)] == []


def test_unknown_metric_is_found() -> None:
    """Wherever it appears."""
    assert [it.name for it in selectors("sum by (x) (rate(a[5m])) / b > 2 or absent(c)")] == ["a", "b", "c"]


def test_dashboard_shows_every_metric() -> None:
    shown = {family_of(it.name) for expression in panel_expressions() for it in selectors(expression)}

    assert shown == METRICS.keys()


def test_panels_have_descriptions_and_do_not_overlap() -> None:
    places = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["description"].endswith(".")
        at = panel["gridPos"]
        place = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not place & places, panel["title"]
        assert all(x < 24 for x, _ in place)
        places |= place
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@alerts
def test_reasons_and_codes_of_alerts_exist(alert: dict[str, Any]) -> None:
    """Otherwise an alert would never fire."""
    reasons = {row.reason for row in ROWS.values()} | {"INTERNAL"}
    codes = {code.name for code in grpc.StatusCode}

    for selector in selectors(alert["expr"]):
        for matcher in selector.matchers.matchers:
            if matcher.name == "grpc_service":
                assert any(re.fullmatch(matcher.value, it.full_name) for it in service_descriptors())
                continue
            known = {"reason": reasons, "grpc_code": codes, "queue": {"writer", "reader"}}[matcher.name]
            assert set(matcher.value.split("|")) <= known


def test_series_of_alerts_exist_before_the_first_event() -> None:
    """To Prometheus, a counter that starts at 1 has not increased."""
    named: dict[str, set[str]] = {"grpc_code": {"OK"}, "reason": set()}
    for alert in ALERTS:
        for selector in selectors(alert["expr"]):
            for matcher in selector.matchers.matchers:
                if matcher.name in named:
                    named[matcher.name] |= set(matcher.value.split("|"))
    metrics = Metrics()
    metrics.method("storeapi.v1.PostService/GetPost", "unary")
    families = MetricsCollector(metrics, database="sqlite", wal_file=None).collect()
    served = {family.name: family.samples for family in families}

    for family, label in {"grpc_server_handled": "grpc_code", "store_errors": "reason"}.items():
        assert {it.labels[label] for it in served[family]} == named[label]
        assert {it.value for it in served[family]} == {0}


def test_broken_service_triggers_alerts() -> None:
    """By its codes, including that of a hanging service, and by missing metrics."""
    found = [selector for alert in ALERTS for selector in selectors(alert["expr"])]
    matchers = [matcher for selector in found for matcher in selector.matchers.matchers]
    values = {value for matcher in matchers for value in matcher.value.split("|")}

    assert values > {"UNAVAILABLE", "INTERNAL", "UNKNOWN", "DATA_LOSS", "DEADLINE_EXCEEDED", "OVERLOADED"}
    assert {selector.name for selector in found} > {"up", "store_build_info", "store_connections"}


def test_no_alert_fires_on_a_momentary_value() -> None:
    """Without `for`, an alert uses a range."""
    at_once = [alert for alert in ALERTS if "for" not in alert]

    assert at_once
    assert [alert["alert"] for alert in at_once if "increase(" not in alert["expr"]] == []


@alerts
def test_alert_has_a_description_and_a_manual_section(alert: dict[str, Any]) -> None:
    """A sentence, and a heading of the manual with something below it."""
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "runbook"}
    assert alert["annotations"]["summary"].endswith(".")
    assert alert["annotations"]["runbook"] == f"{MANUAL}#{alert['alert'].lower()}"
    (below,) = re.findall(rf"^### {alert['alert']}\n\n(.+?)(?=\n#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert len(below.split()) > 20


# The manual


def test_manual_has_every_metric() -> None:
    """With the served type, labels and help text."""
    (table,) = re.findall(r"<!-- metrics -->\n(.*?)<!-- /metrics -->", TEXT, re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", table, re.MULTILINE)

    assert rows == [
        (name, metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for name, metric in METRICS.items()
    ]


def test_manual_has_only_existing_alerts() -> None:
    """In the same order."""
    headings = re.findall(r"^### (\w+)$", TEXT.partition("## When an alert fires")[2], re.MULTILINE)

    assert headings == [alert["alert"] for alert in ALERTS]


def test_manual_names_only_existing_metrics() -> None:
    """In its prose too."""
    named = set(re.findall(r"`(store_\w+)`", TEXT))

    assert named <= METRICS.keys()


@pytest.mark.parametrize("name", METRICS)
def test_metric_names_follow_prometheus_conventions(name: str) -> None:
    """Prefix, base units, `_total` for counters only."""
    metric = METRICS[name]

    assert name.startswith(("store_", "grpc_server_"))
    assert name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|kb|mb|percent)\b", name)
    assert metric.help.endswith(".")
