"""Drawing with matplotlib, if it is installed, and the plots of scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refseg.errors import RefsegError
from refseg.evaluation.scores import Scores, calibration_error, reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRONG, _SOFT, INK, _FAINT = "#2458b8", "#e8833a", "#1d2330", "#c9ced8"


def need_matplotlib() -> None:
    """Raises RefsegError if plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as fault:
        raise RefsegError('the plots need matplotlib; pip install "refseg[report]"') from fault


def new_figure(**settings: Any) -> Figure:
    """A white figure; `settings` are those of `matplotlib.figure.Figure`. Raises RefsegError without matplotlib."""
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(facecolor="white", **settings)  # not pyplot: it keeps state and needs a screen
    FigureCanvasAgg(figure)
    return figure


def plot_reliability(scores: Sequence[float], ious: Sequence[float], path: Path) -> None:
    """Draws how the score (0..1) compares with the IoU that was reached, as PNG or SVG."""
    figure, ((axes,),) = subplots(1, 1, (5.2, 4.8))
    draw_reliability(axes, scores, ious)
    figure.savefig(path, dpi=130)


def subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, npt.NDArray[Any]]:
    figure = new_figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(_FAINT)
        panel.tick_params(colors=INK, length=0)
        panel.set_axisbelow(True)
    return figure, axes


def draw_bars(axes: Any, members: dict[str, Scores], title: str) -> None:
    """Draws overall and mean IoU of each member, in their order from top to bottom."""
    names = [f"{name}  ({scores.count})" for name, scores in members.items()]
    place = np.arange(len(names))
    series = [("overall IoU", [100 * s.overall_iou for s in members.values()], -0.2, _STRONG)]
    series += [("mean IoU", [100 * s.mean_iou for s in members.values()], 0.2, _SOFT)]
    for label, values, shift, colour in series:
        if np.isnan(values).all():
            continue
        bars = axes.barh(place + shift, values, 0.38, label=label, color=colour)
        axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=3, fontsize=8.5, color=INK)
    axes.set_yticks(place, names)
    axes.set_ylim(max(len(names), 5) - 0.4, -0.6)  # a few bars are no thicker than many
    axes.set_xlim(0, 105)
    axes.set_xlabel("%", color=INK)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_title(title, loc="left", color=INK)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def draw_precision(axes: Any, groups: dict[str, dict[str, Scores]]) -> None:
    lines = [("all", groups["all"]["all"], _STRONG, 2.4)]
    styles = zip((_SOFT, "#3d9970", "#8a5bb5", "#7a808c"), groups.get("siblings", {}).items(), strict=False)
    lines += [
        (f"{name} sibling" if name == "without" else name, scores, colour, 1.6) for colour, (name, scores) in styles
    ]
    for name, scores, colour, width in lines:
        precision = scores.precision
        axes.plot(
            list(precision), [100 * share for share in precision.values()], "o-", color=colour, lw=width, label=name
        )
    for x, share in lines[0][1].precision.items():
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
        place = {"textcoords": "offset points", "ha": "center", "fontsize": 9, "color": _STRONG, "bbox": box}
        axes.annotate(f"{100 * share:.0f}", (x, 100 * share), (0, 9), **place)
    axes.set_xticks(list(lines[0][1].precision))
    axes.set_ylim(0, 105)
    axes.set_xlabel("X", color=INK)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_title("Precision@X in %", loc="left", color=INK)
    axes.legend(frameon=False, fontsize=9)


def draw_reliability(axes: Any, scores: Sequence[float], ious: Sequence[float]) -> None:
    """Draws a dot for each bin of scores and its IoU. On the diagonal, a score is the IoU to expect."""
    bins = reliability(scores, ious)
    expected, reached, shares = (np.array(column) for column in zip(*bins, strict=True))
    axes.plot([0, 1], [0, 1], "--", color=_FAINT, lw=1.2)
    axes.vlines(expected, np.minimum(expected, reached), np.maximum(expected, reached), color=_SOFT, lw=2, alpha=0.55)
    axes.scatter(expected, reached, 40 + 900 * shares, color=_STRONG, edgecolor="white", linewidth=1, zorder=3)
    for x, y, share in bins:
        if share >= 0.005:
            axes.annotate(
                f"{share:.0%}", (x, y), (0, -19 - 12 * share), textcoords="offset points", ha="center", fontsize=8
            )
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.14, 1.05)
    axes.set_xlabel("score", color=INK)
    axes.set_ylabel("mean IoU", color=INK)
    axes.grid(color=_FAINT, linewidth=0.6)
    error = calibration_error(scores, ious)
    axes.set_title(f"What the score is worth: calibration error {error:.3f}", loc="left", color=INK)
