"""What docs/benchmarks.md says of its figures."""

import pytest

from benchmarks.targets import TARGETS, Target
from tests.support.repository import ROOT

BY_TITLE = {target.title: target for target in TARGETS}
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/benchmarks.md").read_text().splitlines()
    if line.startswith("|") and line.strip("|").split("|")[0].strip() in BY_TITLE
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_verdict_matches_the_figures(row: list[str]) -> None:
    """No target is called reached that was missed."""
    title, measured, must, aim, verdict = row
    target = BY_TITLE[title]

    assert verdict == target.verdict(number(measured))
    assert number(must.lstrip("≥≤ ")) == target.must
    assert (number(aim.lstrip("≥≤ ")) if aim else None) == target.aim


def number(cell: str) -> float:
    """The number of a cell, without its unit."""
    return float(cell.split()[0].replace(",", ""))


def test_table_has_the_targets() -> None:
    """The search found every row."""
    assert len(ROWS) >= 20


@pytest.mark.parametrize(
    ("figure", "verdict"), [(0.7, "missed"), (0.85, "aim missed"), (0.95, "aim reached")]
)
def test_missed_goal_is_not_reported_as_reached(figure: float, verdict: str) -> None:
    """Between the requirement and the goal, the goal is missed."""
    target = Target(figure="get_256", title="Get", must=0.8, aim=0.95)

    assert target.verdict(figure) == verdict
    assert Target(figure="get_256", title="Get", must=0.8).verdict(0.85) == "reached"
