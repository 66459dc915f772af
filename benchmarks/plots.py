"""Draws the plots of the README from the figures: `python benchmarks/plots.py [FOLDER]`.

Reads the JSON files that the scripts have written with `--results`; leaves out missing ones.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.axes import Axes
from tools.results import shown

RESULTS = Path(__file__).parent / "results"
OURS, OTHERS, ASKED = "#1f6feb", "#8b949e", "#d1242f"

# Text stays text, so files are small and can be searched and read aloud.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "batch_pipeline", "font.size": 9})


def race(axes: Axes, figures: dict[str, Any]) -> None:
    """Draw a bar for the largest batch of each contender; they differ by two powers of ten."""
    largest = {figure["name"]: figure for figure in figures["race"]}
    found = sorted(largest.values(), key=lambda figure: -figure["ms_per_upload"])
    titles = [figures["titles"][figure["name"]] for figure in found]
    values = [figure["ms_per_upload"] for figure in found]
    colours = [OURS if figure["name"] == "pipeline" else OTHERS for figure in found]
    bars = axes.barh(titles, values, color=colours)
    axes.bar_label(bars, list(map(shown, values)), padding=3)
    axes.set_xscale("log")
    axes.set_xlim(right=max(values) * 4)
    axes.set_xlabel("ms per upload from submission to done, with no latency of the model")


def saturation(axes: Axes, figures: dict[str, Any]) -> None:
    """Draw a group of bars for each contender, with one bar for each load."""
    found = figures["saturation"]
    loads = sorted({(f["latency"], f["slots"]) for f in found}, reverse=True)
    names = list(dict.fromkeys(figure["name"] for figure in found))[::-1]
    height = 0.8 / len(loads)
    for number, (latency, slots) in enumerate(loads):
        of_load = {f["name"]: f["saturation"] for f in found if f["latency"] == latency}
        places = [place + (1 - number) * height for place in range(len(names))]
        values = [of_load.get(name, 0) for name in names]
        shade = 1 - 0.3 * number
        bars = axes.barh(
            places, values, height, color=OURS, alpha=shade, label=f"{latency:g} s, {slots} slots"
        )
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), [figures["titles"][name] for name in names])
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("share of the time in which a slot of the model server works")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.08), ncols=3, frameon=False)


def cost(axes: Axes, figures: dict[str, Any]) -> None:
    """Draw the processor time per upload by the size of the batch, stacked by part of the stack."""
    found = _tiny_pictures(figures)
    sizes = [f"{figure['uploads']:,}" for figure in found]
    bottom = [0.0] * len(found)
    colours = ("#d0d7de", "#afb8c1", "#6e7781", OURS, OTHERS)
    for (part, _), colour in zip(found[0]["cpu_ms"].items(), colours, strict=True):
        values = [figure["cpu_ms"][part] for figure in found]
        axes.bar(sizes, values, bottom=bottom, label=part, color=colour)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    axes.set_xlabel("uploads of the batch")
    axes.set_ylabel("CPU ms per upload")
    axes.legend(frameon=False)


def first_result(axes: Axes, figures: dict[str, Any]) -> None:
    """Draw the seconds to the first completed upload by the size of the batch."""
    found = _tiny_pictures(figures)
    sizes = [f"{figure['uploads']:,}" for figure in found]
    bars = axes.bar(sizes, [figure["first_seconds"] for figure in found], color=OURS)
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_xlabel("uploads of the batch")
    axes.set_ylabel("seconds to the first result")


def _tiny_pictures(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return [figure for figure in figures["batches"] if figure["name"].endswith("tiny pictures")]


#: By file to write: where the figures are, the function that draws them, width and height (inches).
PLOTS: dict[str, tuple[str, Callable[[Axes, dict[str, Any]], None], tuple[float, float]]] = {
    "race": ("race", race, (8, 4)),
    "saturation": ("saturation", saturation, (8, 6)),
    "cost": ("stack", cost, (5, 3.5)),
    "first_result": ("stack", first_result, (5, 3.5)),
}


def draw(folder: Path) -> None:
    for name, (source, function, size) in PLOTS.items():
        path = folder / f"{source}.json"
        figures = json.loads(path.read_text()) if path.exists() else {}
        if not figures or not figures.get(name, True):
            print(f"{name}: there are no figures in {path}")
            continue
        plot, axes = pyplot.subplots(figsize=size, layout="constrained")
        function(axes, figures)
        axes.spines[["top", "right"]].set_visible(False)
        day, cores = figures["machine"]["date"][:10], figures["machine"]["cores"]
        plot.suptitle(f"{day}, {cores} cores", fontsize=8, x=0.98, ha="right")
        plot.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(plot)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    draw(parser.parse_args().folder)


if __name__ == "__main__":
    main()
