"""results.json -> results.svg, speed against accuracy; runs in the environment ``plot``: RESULTS.json OUT.svg."""

import json
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from adjustText import adjust_text

COLORS = {"optkit": "#d62728", "onnxruntime": "#555555", "torch": "#ff7f0e", "OpenVINO": "#1f77b4", "Olive": "#2ca02c"}
COLUMNS = 2
FALLING = {"perplexity", "max_error"}
"""Scores of which less is better; their axis is turned over, so that up is better everywhere."""
WORST = 0.12
"""Results that lose more than this share of the baseline's score are drawn at the lower edge."""


def main(source: str, out: str) -> None:
    """One panel a model, at its last point."""
    plt.rcParams |= {"svg.hashsalt": "optkit", "svg.fonttype": "none", "font.size": 9}
    subjects = json.loads(Path(source).read_text())["subjects"]
    rows = math.ceil(len(subjects) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(6.5 * COLUMNS, 4.2 * rows), squeeze=False)
    for axis, subject in zip(axes.flat, subjects, strict=False):
        panel(axis, subject)
    for axis in list(axes.flat)[len(subjects) :]:
        axis.set_visible(False)
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=color, label=peer) for peer, color in COLORS.items()]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / (4.2 * rows)))
    figure.savefig(out, metadata={"Date": None})


def panel(axis, subject: dict) -> None:
    """Speed to the right, accuracy upwards; a cross at the lower edge is worse than the axis shows."""
    name = subject["headline"]
    running = [each for each in subject["candidates"] if not each["failed"] and speed(each) and name in each["scores"]]
    sign = -1 if name in FALLING else 1
    floor = running[0]["scores"][name] * (1 - sign * WORST)
    found = [each["scores"][name] for each in running]
    heights = [floor if sign * value < sign * floor else value for value in found]
    for each, height, value in zip(running, heights, found, strict=True):
        axis.plot(speed(each), height, "o" if height == value else "x", color=color(each), markersize=6, alpha=0.85)
    axis.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 15) if in_range(tick, running)]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_xticks([], minor=True)
    axis.axvline(1, color="#cccccc", linewidth=1, zorder=0)
    axis.margins(x=0.15, y=0.2)
    axis.ticklabel_format(axis="y", useOffset=False)
    if sign < 0:
        axis.invert_yaxis()
    point = ", ".join(f"{dim} {size}" for dim, size in subject["points"][-1].items())
    axis.set_title(f"{subject['title']}\n{point}", fontsize=9)
    axis.set_xlabel("times as fast as plain onnxruntime")
    axis.set_ylabel(name + (f" (x: more than {WORST:.0%} worse)" if heights != found else ""))
    label(axis, running, heights)


def label(axis, running: list[dict], heights: list[float]) -> None:
    """Names beside the dots, moved apart until none lies on another."""
    texts = []
    for each, height in zip(running, heights, strict=True):
        style = {"color": color(each), "fontsize": 7, "weight": "bold" if each["peer"] == "optkit" else "normal"}
        texts.append(axis.text(speed(each), height, each["label"], **style))
    dots = [speed(each) for each in running], heights
    arrows = {"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.5}
    adjust_text(texts, *dots, ax=axis, arrowprops=arrows, expand=(1.1, 1.5), iter_lim=500, min_arrow_len=8)


def color(candidate: dict) -> str:
    """Of its peer."""
    return COLORS.get(candidate["peer"], "#999999")


def speed(candidate: dict) -> float:
    """Times as fast as the baseline at the last point, 0 where it did not run."""
    points = candidate["points"]
    ratio = points[-1]["ratio"] if points else None
    return ratio["speedup"] if ratio else 0.0


def in_range(tick: float, running: list[dict]) -> bool:
    """Whether a tick lies near the dots."""
    speeds = [speed(each) for each in running]
    return min(speeds) * 0.7 <= tick <= max(speeds) * 1.4


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
