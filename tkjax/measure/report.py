"""report.json and report.html: one self-contained page with table, curves, worst frames and the video."""

import base64
import dataclasses
import html
import importlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.host.files import write_atomic
from tkjax.media import images

VIDEO_LIMIT_BYTES = 8 << 20  # larger videos are linked, not inlined
ROW_MEASURES = ("seam", "box_edge", "psnr_outside_mask")  # columns that baselines do not have
CURVES = ("loss", "psnr")
CURVE_POINTS = 600
LABELS = {
    "psnr": "PSNR, dB",
    "psnr_face": "PSNR face, dB",
    "psnr_mouth": "PSNR mouth, dB",
    "ssim": "SSIM",
    "ssim_face": "SSIM face",
    "ssim_mouth": "SSIM mouth",
    "psnr_head": "PSNR head, dB",
    "lpips": "LPIPS",
    "nioe": "NIOE (mouth)",
    "fid": "FID",
    "seam": "neck seam, levels",
    "box_edge": "box edge, levels",
    "psnr_outside_mask": "PSNR outside mask, dB",
    "lmd_px": "LMD, px",
    "lmd_norm": "LMD / eye distance",
    "sd_ratio": "sd, rendered / true",
    "delay_frames": "delay, frames",
    "closures_closed": "closures that close",
    "still_px": "pixels that move under constant drive",
    "silence_motion": "lip motion in silence",
    "train_steps_per_s": "training, steps/s",
    "render_fps": "rendering, frames/s",
    "train_seconds": "training, s",
    "preprocess_seconds": "preprocessing, s",
}
STYLE = """
:root{--ink:#1c1e21;--soft:#666d76;--line:#dfe2e6;--page:#fff;--tint:#f5f6f8;--accent:#2f5fd0}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa2ac;--line:#363b42;--page:#17191c;--tint:#202328;
--accent:#8fb0ff}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:60rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}p,td,th{margin:.3rem 0}
.soft{color:var(--soft)}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.35rem .6rem;border-bottom:1px solid var(--line);font-weight:400}
th{color:var(--soft);font-size:.85rem}th:first-child,td:first-child{text-align:left}
tr.model td{font-weight:600;background:var(--tint)}.wrap{overflow-x:auto}
.frames{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1rem}
figure{margin:0}figure img{width:100%;display:block;border-radius:4px}
.videos{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}.videos video{display:block;height:19rem;max-width:100%;
border-radius:4px;background:var(--tint)}.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots svg{max-width:100%;
height:auto}
table.pairs td{text-align:left;vertical-align:top}table.pairs td:first-child{color:var(--soft);width:13rem}
.plot{background:#fff;border-radius:4px}
figcaption{color:var(--soft);font-size:.85rem}pre{background:var(--tint);padding:.8rem;overflow-x:auto;font-size:.8rem}
"""


Numbers = Mapping[str, Any]  # by their names; None where one could not be computed


@dataclasses.dataclass(kw_only=True)
class Report:
    """What report.json holds, in its order. A number that could not be computed is null, and `reasons` says why.

    The fields up to `size` are the evaluator's (`evaluate.evaluate`); metrics to psnr_outside_mask are those of the
    first row, but for the last two, which belong to the row that is pasted back.
    """

    ground_truth_layers: Sequence[str]  # true layers under the first row's pictures
    metrics: Numbers
    more_metrics: Numbers
    seam: float | None
    box_edge: float | None
    psnr_outside_mask: float | None
    reasons: Mapping[str, str]  # name of a number -> why it is null
    system: str
    split: Mapping[str, Any]  # kind, numbers and ranges of training, held-out and scored frames
    params: Mapping[str, int]  # numbers of parameters by part
    baselines: Mapping[str, Numbers]
    more_baselines: Mapping[str, Numbers]
    response: Mapping[str, Any] | None  # do lips and eyes follow, what each signal moves (`measure.response`)
    rows: Sequence[Mapping[str, Any]]  # one per combination of true and modelled layers, with all of the above
    notes: Mapping[str, str]  # how a number is made
    comparison: Sequence[str]  # captions of the pictures in comparison.mp4, from the left
    size: Sequence[int]  # height, width
    speed: Numbers
    versions: Mapping[str, str]
    stages: Sequence[str]  # that were trained
    subject: str
    avatar: str
    consent: Mapping[str, Any]
    config: Mapping[str, Any]
    spread: Numbers | None = None  # standard deviations over the frames, of the first row
    per_frame: Mapping[str, Sequence] | None = None  # its values by frame, and the frames' numbers
    demo: Mapping[str, Any] | None = None  # these three of --mode=demo only
    new_speech: Numbers | None = None
    tracker: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a tree; what belongs to the demo is left out elsewhere."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        elsewhere = ("spread", "per_frame", "demo", "new_speech", "tracker")
        return {k: v for k, v in fields.items() if v is not None or k not in elsewhere}


def finite(value: Any) -> Any:
    """The same tree with numbers that json cannot write (NaN, infinity, numpy scalars) as null or plain numbers."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def write_json(path: Path, report: Mapping) -> None:
    """Strict json, replaced in one go."""
    write_atomic(Path(path), (json.dumps(finite(report), indent=2, allow_nan=False) + "\n").encode())


def read_metrics(path: Path) -> list[dict]:
    """Rows of a metrics.jsonl; a torn last line (a run that was killed) is left out."""
    rows = []
    if Path(path).is_file():
        for line in Path(path).read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows


def log(path: Path, row: Mapping[str, Any]) -> None:
    """One row of an evaluation (it has `response`) after the training rows of a metrics.jsonl, which stay."""
    before = path.read_text() if path.is_file() else ""
    whole_lines = before[: before.rfind("\n") + 1]  # a kill may have cut the last one in two
    write_atomic(path, whole_lines + json.dumps(finite(row), allow_nan=False) + "\n")


def curves(rows: Sequence[Mapping]) -> dict[str, list[tuple[str, list[int], list[float]]]]:
    """{name: [(stage, steps counted over all stages, values)]}, thinned to CURVE_POINTS per stage."""
    out: dict[str, list] = {}
    offset = 0
    rows = [r for r in rows if "step" in r and "response" not in r]
    stages = list(dict.fromkeys(r.get("stage", "") for r in rows))
    for stage in stages:
        mine = {r["step"]: r for r in rows if r.get("stage", "") == stage}  # a resumed run repeats steps
        for name in CURVES:
            points = [(s, mine[s][name]) for s in sorted(mine) if isinstance(mine[s].get(name), int | float)]
            points = points[:: max(1, len(points) // CURVE_POINTS)]
            if points:
                out.setdefault(name, []).append((stage, [offset + s for s, _ in points], [float(v) for _, v in points]))
        offset += max(mine, default=0)
    return out


def can_plot() -> bool:
    """Whether matplotlib (of the extra `eval`) is here; without it a page has no curves."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    return True


def line_plot(
    title: str, parts: Sequence[tuple[str, list, list]], x: str, log: bool = False, width: float | int = 4.4
) -> str:
    """Lines (label, x, y) as inline svg; width in inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 2.5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for label, steps, values in parts:
        axes.plot(steps, values, linewidth=1.2, label=label or None)
    if log and all(v > 0 for _, _, values in parts for v in values):
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    if len(parts) > 1:
        axes.legend(frameon=False, fontsize=8)
    out = io.StringIO()
    figure.savefig(out, format="svg")
    return out.getvalue()[out.getvalue().index("<svg") :]


def _training_plots(rows: Sequence[Mapping]) -> list[str]:
    titles = {"loss": "loss", "psnr": "PSNR of the training pixels, dB"}
    return [line_plot(titles[n], parts, "step", log=n == "loss") for n, parts in curves(rows).items()]


def _response_plots(response: Mapping) -> list[str]:
    """True and rendered curves over the frames' numbers, with gaps where frames follow one another not."""
    out = []
    for kind, c in response.get("curves", {}).items():
        title = {"lips": "lip gap", "eyes": "eye opening"}.get(kind, kind)
        frames, lines = [], {"true": [], "rendered": []}
        for k, frame in enumerate(c["frame"]):
            if frames and frame != frames[-1] + 1:
                frames.append(frame)
                _append(lines, dict.fromkeys(lines))
            frames.append(frame)
            _append(lines, {name: c[name][k] for name in lines})
        parts = [(n, frames, [math.nan if v is None else v for v in values]) for n, values in lines.items()]
        out.append(line_plot(f"{title} of held-out frames", parts, "frame", width=9.0))
    return out


def _append(lines: dict[str, list], values: Mapping) -> None:
    for name, value in values.items():
        lines[name].append(value)


def plot_figures(plots: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(f"<figure class=plot>{p}</figure>" for p in plots)}</div>'


def _response(response: Mapping | None, drawn: bool) -> str:
    """Lips and eyes against the truth, what the signals move, and both curves over time."""
    if not response:
        return ""
    names = list(response["lips"])
    head = "".join(f"<th>{html.escape(LABELS.get(n, n.replace('_', ' ')))}</th>" for n in names)
    rows = "".join(
        f"<tr><td>{kind}</td>{''.join(f'<td>{in_digits(response[kind][n], n)}</td>' for n in names)}</tr>"
        for kind in ("lips", "eyes")
    )
    table = f'<div class="wrap"><table><tr><th>held-out frames</th>{head}</tr>{rows}</table></div>'
    facts = {
        f"{name}, low to high": f"{v['changed_px']:.0f} px change, mean {v['mean_change']:.2f} of 255, most of it in: "
        f"{(v['region'] or 'nowhere').replace('_', ' ')}"
        for name, v in response["drive_test"].items()
        if v is not None
    }
    facts |= {n: in_digits(response[n], n) for n in ("still_px", "silence_motion")} | {
        "measured by": response.get("measured_by", "")
    }
    why = dict.fromkeys(response.get("reasons", {}).values())
    said = "".join(f"<p class=soft>{html.escape(r)}</p>" for r in why)
    return (
        "<h2>Does it speak and blink</h2>"
        + table
        + said
        + (plot_figures(_response_plots(response)) if drawn else "")
        + pair_table("What moves the picture", facts)
    )


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def in_digits(value: Any, name: str) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    digits = 4 if name.startswith(("ssim", "lmd_norm", "lpips", "nioe")) else 2
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _table(report: Mapping) -> str:
    """Every row of the report and the baselines; a column that no row has a number in is left out, but the main ones
    stay. `reasons` says what a dash means."""
    names, more = [*report["metrics"]], [*report.get("more_metrics", {}), *ROW_MEASURES]
    names += [n for n in more if any({**r.get("more_metrics", {}), **r}.get(n) is not None for r in report["rows"])]
    head = "".join(f"<th>{html.escape(LABELS.get(n, n))}</th>" for n in names)
    body = []

    def add(label: str, scores: Mapping, mark: str = "") -> None:
        cells = "".join(f"<td>{in_digits(scores.get(n), n)}</td>" for n in names)
        body.append(f'<tr class="{mark}"><td>{html.escape(label)}</td>{cells}</tr>')

    for row in report["rows"]:
        given = " + ".join(row["ground_truth_layers"]).replace("_", " ") or "nothing"
        how = f", {row['paste_back']}" if "paste_back" in row else ""
        scores = {**row["metrics"], **row.get("more_metrics", {}), **{k: row.get(k) for k in ROW_MEASURES}}
        add(f"{report['system']} (given: {given}{how})", scores, "model")
    for name, scores in report["baselines"].items():
        add(name.replace("_", " "), {**scores, **report.get("more_baselines", {}).get(name, {})})
    return f'<div class="wrap"><table><tr><th>held-out frames</th>{head}</tr>{"".join(body)}</table></div>'


def pair_table(title: str, values: Mapping) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(LABELS.get(k, k.replace('_', ' ')))}</td><td>{html.escape(_text(v, k))}</td></tr>"
        for k, v in values.items()
    )
    return f'<h2>{html.escape(title)}</h2><table class="pairs">{rows}</table>'


def _text(value: Any, name: str) -> str:
    return value if isinstance(value, str) else in_digits(value, name)


def video_figure(path: Path | None, caption: str, folder: Path) -> str:
    if path is None or not Path(path).is_file():
        return ""
    path = Path(path)
    inline = path.stat().st_size < VIDEO_LIMIT_BYTES
    source = data_uri(path.read_bytes(), "video/mp4") if inline else html.escape(os.path.relpath(path, folder))
    note = "" if inline else " (beside this page: too large to be part of it)"
    return (
        f'<figure><video controls preload="metadata" src="{source}"></video>'
        f"<figcaption>{html.escape(caption + note)}</figcaption></figure>"
    )


def picture_figures(frames: Sequence[tuple[str, np.ndarray]]) -> str:
    cells = (
        f'<figure><img alt="{html.escape(c)}" src="{data_uri(images.encode_jpeg(p), "image/jpeg")}">'
        f"<figcaption>{html.escape(c)}</figcaption></figure>"
        for c, p in frames
    )
    return f'<div class="frames">{"".join(cells)}</div>'


def consent_text(consent: Mapping | None) -> str:
    if not consent:
        return "No consent record."
    if consent.get("statement"):
        return f"Consent: “{consent['statement']}”"
    return f"Consent: none asked ({consent.get('reason', 'no reason recorded')})."


def _split(split: Mapping) -> str:
    """Where the held-out frames lie."""
    runs = split.get("heldout_runs", [])
    if split.get("kind", "last") == "last":
        return "the end of the clip"
    return f"--split={split['kind']}: frames " + ", ".join(f"{a}–{b - 1}" for a, b in runs)


def page(
    report: Mapping,
    rows: Sequence[Mapping],
    worst: Sequence[tuple[str, np.ndarray]],
    videos: Sequence[tuple[Path, str]],
    folder: Path,
) -> str:
    """The html. `rows` come from metrics.jsonl, `worst` are (caption, picture), `videos` (path, caption)."""
    report = finite(report)
    split, notes = report["split"], report.get("notes", {})
    shown = ", ".join(report.get("comparison", ("model", "truth")))
    drawn = can_plot()
    plots = _training_plots(rows) if drawn else []
    no_plots = "" if drawn else "<p class=soft>No curves: matplotlib is not installed (tkjax[eval] has it).</p>"
    missing = "".join(f"<p class=soft>{html.escape(f'{k}: {v}')}</p>" for k, v in report.get("reasons", {}).items())
    sections = [
        f"<h1>{html.escape(str(report.get('subject', 'subject')))}: {html.escape(report['system'])}</h1>",
        f"<p class=soft>{split['train_frames']} training frames, {split['heldout_frames']} held out ({_split(split)}); "
        f"avatar {html.escape(str(report.get('avatar', '')))}. {html.escape(consent_text(report.get('consent')))}</p>",
        f'<div class="videos">{"".join(video_figure(p, c, folder) for p, c in videos)}</div>',
        "<h2>Measured on held-out frames</h2>",
        _table(report),
        missing,
        _response(report.get("response"), drawn),
        *(
            pair_table(title, report[key])
            for key, title in (("new_speech", "New speech"), ("demo", "Demo"), ("tracker", "Tracker"))
            if report.get(key)
        ),
        f"<h2>Worst frames</h2><p class=soft>From the left: {html.escape(shown)}.</p>" + picture_figures(worst)
        if len(worst)
        else "",
        f"<h2>Training</h2>{plot_figures(plots)}" if plots else no_plots,
        pair_table("Parameters", {k: f"{n:,}" for k, n in report.get("params", {}).items()}),
        pair_table("Speed", report["speed"]),
        pair_table("How the numbers are made", notes),
        pair_table("Versions", report["versions"]),
        f"<h2>Config</h2><pre>{html.escape(json.dumps(report.get('config', {}), indent=1))}</pre>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>tkjax report: {html.escape(str(report.get('subject', '')))}</title><style>{STYLE}</style></head><body>"
        + "\n".join(s for s in sections if s)
        + "<p class=soft>All faces on this page outside the truth pictures are synthetic.</p></body></html>\n"
    )


def write(
    folder: Path,
    report: Report,
    worst: Sequence[tuple[str, np.ndarray]] = (),
    videos: Sequence[tuple[Path, str]] = (),
) -> None:
    """report.json and then report.html into `folder`, curves from its metrics.jsonl: the numbers are there before
    anything is drawn, because a page is made again more easily than an evaluation."""
    folder, tree = Path(folder), report.to_json()
    write_json(folder / "report.json", tree)
    text = page(tree, read_metrics(folder / "metrics.jsonl"), worst, videos, folder)
    write_atomic(folder / "report.html", text.encode())
