"""evaluation_report.txt and metrics_plot.png: the figures of an evaluation as text and as one picture, in the form of
the AD-NeRF reproduction's evaluation (ad-nerf dossier §7): rules of 60 "=", PSNR and FID with two decimals, SSIM and
NIOE with four, mean +- standard deviation over the frames (population)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tkjax.host import files

TEXT, PLOT = "evaluation_report.txt", "metrics_plot.png"
RULE = "=" * 60
WIDTH = 16
SIZE_IN, DPI = (12, 8), 150
# key of the figures -> name, decimals, unit; in the order of the sections
IMAGE = {
    "psnr": ("PSNR", 2, " dB"),
    "psnr_face": ("PSNR face", 2, " dB"),
    "psnr_mouth": ("PSNR mouth", 2, " dB"),
    "ssim": ("SSIM", 4, ""),
    "lpips": ("LPIPS", 4, ""),
    "fid": ("FID", 2, ""),
}
LANDMARKS = {"nioe": ("NIOE (mouth)", 4, ""), "lmd_px": ("LMD", 2, " px"), "lmd_norm": ("LMD / eyes", 4, "")}
SECTIONS = {"Image quality": IMAGE, "Landmarks": LANDMARKS}


@dataclasses.dataclass(frozen=True)
class Scored:
    """What was scored. facts: lines of the head. frames: numbers; per_frame: key -> a value for each (NaN where
    there is none); whole: key -> one number for all frames; reasons: key -> why it is missing."""

    facts: Mapping[str, str]
    frames: Sequence[int]
    per_frame: Mapping[str, Sequence[float]]
    whole: Mapping[str, float]
    reasons: Mapping[str, str]

    def mean_std(self, key: str) -> tuple[float, float] | None:
        """Over the frames that have a value; None where no frame has."""
        if math.isfinite(self.whole.get(key, math.nan)):
            return float(self.whole[key]), math.nan
        values = np.array(self.per_frame.get(key, ()), np.float64)
        values = values[np.isfinite(values)]
        return (float(values.mean()), float(values.std())) if len(values) else None


def text(scored: Scored) -> str:
    """The content of evaluation_report.txt."""

    def headed(title: str) -> list[str]:
        return ["", RULE, title, RULE]

    lines = [RULE, "Evaluation report", RULE]
    lines += [f"{k + ':':{WIDTH}}{v}" for k, v in scored.facts.items()]
    summary = []
    for title, keys in SECTIONS.items():
        rows = []
        for key, (name, digits, unit) in keys.items():
            found = scored.mean_std(key)
            if found is not None:
                mean, std = found
                spread = f" +- {std:.{digits}f}" if math.isfinite(std) else ""
                rows.append(f"{name + ':':{WIDTH}}{mean:.{digits}f}{spread}{unit}")
                if key in ("psnr", "ssim", "fid", "nioe"):
                    summary.append(f"{name} {mean:.{digits}f}{unit}")
            elif key in scored.reasons:
                rows.append(f"{name + ':':{WIDTH}}{scored.reasons[key].partition(';')[0]}")
        lines += [*headed(title), *(rows or ["nothing asked for"])]
    lines += [*headed("Summary"), f"{'frames:':{WIDTH}}{len(scored.frames)}", ", ".join(summary) or "nothing measured"]
    return "\n".join([*lines, RULE]) + "\n"


def plot(scored: Scored, path: Path) -> None:
    """metrics_plot.png: PSNR, SSIM and NIOE of every frame with their means, bars of the means; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_IN, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panes = figure.subplots(2, 2)
    for axes, key, title, colour in zip(
        panes.flat, ("psnr", "ssim", "nioe"), ("PSNR, dB", "SSIM", "NIOE (mouth)"), ("C0", "C2", "C1")
    ):
        axes.set_title(title, loc="left")
        axes.set_xlabel("frame")
        found = scored.mean_std(key)
        if found is None:
            axes.text(0.5, 0.5, "not computed", ha="center", va="center", transform=axes.transAxes, color="0.5")
        else:
            axes.plot(scored.frames, scored.per_frame[key], color=colour, linewidth=1)
            axes.axhline(found[0], color="0.3", linestyle="--", linewidth=1, label=f"mean {found[0]:.4g}")
            axes.legend(frameon=False)
        if key == "ssim":
            axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    bars = {"PSNR": ("psnr", 1), "SSIM x10": ("ssim", 10), "FID": ("fid", 1), "NIOE x100": ("nioe", 100)}
    shown = {name: scored.mean_std(key)[0] * f for name, (key, f) in bars.items() if scored.mean_std(key) is not None}
    axes = panes[1, 1]
    axes.set_title("means", loc="left")
    drawn = axes.bar(list(shown), list(shown.values()), color=["C0", "C2", "C3", "C1"][: len(shown)])
    axes.bar_label(drawn, fmt="%.2f")
    axes.spines[["top", "right"]].set_visible(False)
    with files.whole(path, ".png") as part:
        canvas.print_png(part)


def write(folder: Path, scored: Scored, drawn: bool = True) -> None:
    """Both files into a folder. drawn: with the plot, which needs matplotlib."""
    files.write_atomic(folder / TEXT, text(scored))
    if drawn:
        plot(scored, folder / PLOT)
