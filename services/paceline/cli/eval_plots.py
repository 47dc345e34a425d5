"""Acceptance by draft position, drawn: one picture of conditional acceptance, one of survival."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from paceline.cli.eval_report import Evaluation
from paceline.speculation.figures import Figures

Curve = Callable[[Figures], Sequence[float | None]]
PICTURES: dict[str, tuple[str, Curve]] = {
    "acceptance": ("accepted, if all before it were", Figures.acceptance),
    "survival": ("accepted with all before it", Figures.survival),
}


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the pictures, a panel for each domain and a line for each drafter; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_picture(evaluation, folder / f"{name}.png", label, curve) for name, (label, curve) in PICTURES.items()]


def _picture(evaluation: Evaluation, path: Path, label: str, curve: Curve) -> Path:
    domains = evaluation.domains
    figure = Figure(figsize=(3.2 * len(domains) + 0.8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
    for panel, domain in zip(panels, domains, strict=True):
        for way in evaluation.drafters:
            values = [value for value in curve(evaluation.figures(way, domain)) if value is not None]
            panel.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=way)
        panel.set(title=domain, xlabel="draft position", ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(label)
    panels[-1].legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return path
