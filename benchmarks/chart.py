"""The chart: the throughput of each contender as a share of the ceiling."""

from pathlib import Path

from benchmarks.lineup import CEILING, LINEUP
from benchmarks.results import Results
from benchmarks.workloads import BY_NAME

SHOWN = ("get_256", "create_256", "get_1", "create_1")

# This service is blue, the other contenders in Python are grey, those in Go are brown.
COLOURS = {
    "sqlite": "#1b6ca8",
    "postgresql": "#6bb0de",
    "plain": "#8a8a8a",
    "old-stack": "#b0b0b0",
    "threads": "#d0d0d0",
    "go-single": "#c9b27c",
    "go-groups": "#a8863a",
}


def draw(results: Results, path: Path) -> None:
    """Writes the chart as SVG."""
    import matplotlib

    matplotlib.use("svg")
    # Equal numbers produce equal files, and text is stored as text.
    matplotlib.rcParams.update({"svg.hashsalt": "store-service", "svg.fonttype": "none"})
    from matplotlib import pyplot

    shown = [name for name in SHOWN if CEILING.name in results.medians.get(name, {})]
    present = {name for workload in shown for name in results.medians[workload]} - {CEILING.name}
    contenders = [contender for contender in LINEUP if contender.name in present]
    height = 0.8 / max(1, len(contenders))

    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.28 * len(shown) * (len(contenders) + 1)))
    for number, contender in enumerate(contenders):
        places, lengths = [], []
        for row, workload in enumerate(shown):
            sample = results.medians[workload].get(contender.name)
            if sample is None:
                continue
            ceiling = results.medians[workload][CEILING.name]
            places.append(row + (number - (len(contenders) - 1) / 2) * height)
            lengths.append(sample.calls_per_second / ceiling.calls_per_second)
        bars = axes.barh(
            places, lengths, height=height * 0.9, label=contender.title, color=COLOURS[contender.name]
        )
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.text(1, -0.55, " ceiling", fontsize=8, va="bottom")
    axes.set_yticks(range(len(shown)), [BY_NAME[name].title for name in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.15, axes.get_xlim()[1]))
    axes.set_xlabel("calls a second, as a share of a grpc.aio server that does nothing")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.12), ncols=3)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
