"""results.json -> results.svg, speed against accuracy; runs in the environment ``plot``: RESULTS.json OUT.svg."""

import json
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

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
    base = running[0]["scores"][name]
    sign = -1 if name in FALLING else 1
    floor = base * (1 - sign * WORST)
    worst = min((sign * each["scores"][name] for each in running), default=0)
    clipped = worst < sign * floor
    for each in running:
        value = each["scores"][name]
        below = sign * value < sign * floor
        marker, color = ("x" if below else "o"), COLORS.get(each["peer"], "#999999")
        axis.plot(speed(each), floor if below else value, marker, color=color, markersize=7, alpha=0.85)
    label(
        axis, running, lambda each: floor if sign * each["scores"][name] < sign * floor else each["scores"][name], sign
    )
    axis.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10) if in_range(tick, running)]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_xticks([], minor=True)
    axis.axvline(1, color="#cccccc", linewidth=1, zorder=0)
    axis.margins(x=0.22, y=0.12)
    if sign < 0:
        axis.invert_yaxis()
    point = ", ".join(f"{dim} {size}" for dim, size in subject["points"][-1].items())
    axis.set_title(f"{subject['title']}\n{point}", fontsize=9)
    axis.set_xlabel("times as fast as plain onnxruntime")
    axis.set_ylabel(name + (f" (crosses: more than {WORST:.0%} worse)" if clipped else ""))


def label(axis, running: list[dict], height, sign: int) -> None:
    """Names beside the dots, pushed apart where they would lie on each other."""
    taken: list[tuple[float, float]] = []
    levels = [height(each) for each in running]
    span = (max(levels) - min(levels)) or abs(levels[0]) * 0.01 or 1
    for each in sorted(running, key=lambda each: (each["peer"] != "optkit", -speed(each))):
        x, y = math.log(speed(each)), sign * height(each) / span
        step = sum(abs(x - left) < 0.35 and abs(y - up) < 0.06 for left, up in taken)
        taken.append((x, y))
        where = (5, 4 - 9 * step) if step % 2 == 0 else (5, 4 + 9 * step)
        style = {"fontsize": 7, "color": COLORS.get(each["peer"], "#999999")}
        weight = "bold" if each["peer"] == "optkit" else "normal"
        axis.annotate(
            each["label"], (speed(each), height(each)), where, textcoords="offset points", weight=weight, **style
        )


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
