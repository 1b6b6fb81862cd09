"""Charts of what a defense noted: its estimates of mutual information, and its pruning curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchbd.figures.noted import Form, noted_information, noted_pruning
from benchbd.figures.panels import CLASSES, HIT, INK, REST, Picture
from benchbd.figures.scene import Scene

LABELLED = 24  # thresholds at most that stand beside a curve


def _of_defense(scene: Scene, read: Callable[[Mapping[str, Any]], Form | str]) -> Form | str:
    """What a record's defense noted, in the form that ``read`` gives, or why there is nothing to draw."""
    if "defend" not in scene.record.stages:
        return "there is no defense"
    noted = read(scene.record.findings)
    return f"defense {scene.record.defense} {noted}" if isinstance(noted, str) else noted


def draw_information(scene: Scene) -> Picture | str:
    """A defense's estimate for each stage, and the weights that it computed from the estimates."""
    noted = _of_defense(scene, noted_information)
    if isinstance(noted, str):
        return noted
    weights, information = noted.beta, noted.information
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(weights)
    estimates = [math.nan if (value := information.get(name)) is None else value for name in names]
    remarks = [
        *(["not estimated"] if not information else []),
        *([f"saturated: {', '.join(noted.saturated)}"] if noted.saturated else []),
    ]
    for axes, values, colour, label, form in (
        (left, estimates, CLASSES[2], "I(map; feature) [nats]", "{:.3f}"),
        (right, list(weights.values()), CLASSES[0], "layer weight β", "{:.0f}"),
    ):
        bars = axes.bar(names, [0 if math.isnan(value) else value for value in values], color=colour)
        axes.bar_label(bars, ["n/a" if math.isnan(value) else form.format(value) for value in values], padding=2)
        axes.margins(y=0.15)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("stage of the encoder")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title("; ".join(remarks))
    right.set_title("estimates cannot be told apart: uniform" if noted.uniform_fallback else "")
    scene.entitle(figure, "Mutual information of each stage, and its weight in the repair")
    return Picture(figure)


def draw_pruning(scene: Scene) -> Picture | str:
    """Pretext accuracy at every level that a defense tried, with its threshold; the level taken; the tolerance."""
    noted = _of_defense(scene, noted_pruning)
    if isinstance(noted, str):
        return noted
    curve = noted.curve
    labelled = curve[-1].threshold is not None
    every = -(-len(curve) // LABELLED)
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    pruned, utility = [level.pruned for level in curve], [100 * level.utility for level in curve]
    axes.plot(pruned, utility, color=CLASSES[0], marker="o", markersize=3)
    if noted.tolerance is not None:
        least = 100 * (curve[0].utility - noted.tolerance)
        axes.axhline(least, color=REST, linestyle="--", label=f"tolerance: {100 * noted.tolerance:g} points")
    for number, (level, *at) in enumerate(zip(curve, pruned, utility, strict=True)):
        place = (at[0], at[1])
        if number % every == 0 and level.threshold is not None:
            label = axes.annotate(f"{level.threshold:g}", place, (0, 6), textcoords="offset points", rotation=90)
            label.set(fontsize=6, ha="center", color=INK)
        if level.pruned == noted.pruned:
            by = "" if level.threshold is None else f" at {level.threshold:g}"
            taken = f"taken: {level.pruned} channel{'s' * (level.pruned != 1)}{by}"
            axes.plot(*place, color=HIT, marker="s", linestyle="", label=taken, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("pruned channels")
    axes.set_ylabel("pretext accuracy [%]")
    axes.margins(y=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    scene.entitle(figure, f"Pruning: every level tried{', with its threshold' if labelled else ''}")
    return Picture(figure)
