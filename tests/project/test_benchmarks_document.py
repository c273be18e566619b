"""What docs/benchmarks.md says of its figures."""

import pytest

from benchmarks.targets import TARGETS, Target
from tests.project.conftest import ROOT

BY_TITLE = {target.title: target for target in TARGETS}
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/benchmarks.md").read_text().splitlines()
    if line.startswith("|") and line.strip("|").split("|")[0].strip() in BY_TITLE
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_verdict_is_that_of_the_figures_beside_it(row: list[str]) -> None:
    """Nothing is called reached whose aim was missed."""
    title, measured, must, aim, verdict = row
    target = BY_TITLE[title]

    assert verdict == target.verdict(number(measured))
    assert number(must.lstrip("≥≤ ")) == target.must
    assert (number(aim.lstrip("≥≤ ")) if aim else None) == target.aim


def number(cell: str) -> float:
    """The number of a cell, without its unit."""
    return float(cell.split()[0].replace(",", ""))


def test_the_table_has_the_targets() -> None:
    """No row was left out by the search above."""
    assert len(ROWS) >= 20


@pytest.mark.parametrize(
    ("figure", "verdict"), [(0.7, "missed"), (0.85, "aim missed"), (0.95, "aim reached")]
)
def test_a_missed_aim_is_not_reached(figure: float, verdict: str) -> None:
    """Between what must be and the aim, the aim is missed."""
    target = Target(figure="get_256", title="Get", must=0.8, aim=0.95)

    assert target.verdict(figure) == verdict
    assert Target(figure="get_256", title="Get", must=0.8).verdict(0.85) == "reached"
