"""compare.html: several systems on the same shards on one page, made of the rows of compare.json."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.measure import report
from tkjax.measure.report import LABELS, in_digits, line_plot, pair_table, picture_figures, plot_figures, video_figure

MEASURES = (
    "psnr", "psnr_face", "psnr_mouth", "ssim", "ssim_mouth", "lpips", "lmd_px", "lmd_norm", "nioe", "fid", "seam",
)  # fmt: skip
MORE_IS_BETTER = ("psnr", "psnr_face", "psnr_mouth", "ssim", "ssim_mouth")
POINTS = 300  # of a curve
STYLE = """
body{max-width:76rem}td.best{color:var(--accent);font-weight:700}td.fail{text-align:left;color:#c0392b}
.lead img{width:100%;border-radius:6px;display:block}.lead{margin:1rem 0}tr.first td{border-top:2px solid var(--line)}
.videos video{height:auto;width:100%;max-height:26rem}.bar{display:inline-block;height:.55rem;background:var(--accent);
border-radius:2px;vertical-align:middle;margin-left:.5rem;opacity:.65}
"""


def training_curves(rows: Sequence[Mapping]) -> dict[str, list]:
    """Loss and PSNR of the training pixels over minutes of training, over all stages: minutes, stage, psnr, loss."""
    out: dict[str, list] = {"minutes": [], "stage": [], "psnr": [], "loss": []}
    before, last, stage = 0.0, 0.0, None
    for row in rows:
        if "response" in row or not {"stage", "seconds", "psnr", "loss"} <= set(row):
            continue
        if row["stage"] != stage:
            before, stage = before + last, row["stage"]
        last = float(row["seconds"])
        for name, value in (("minutes", (before + last) / 60), ("stage", stage)):
            out[name].append(value)
        for name in ("psnr", "loss"):
            out[name].append(row[name])
    keep = range(0, len(out["stage"]), max(1, -(-len(out["stage"]) // POINTS)))
    return {name: [values[k] for k in keep] for name, values in out.items()}


def _escaped(value: Any) -> str:
    return html.escape(str(value))


def _digits(value: Any, name: str) -> str:
    return _escaped(in_digits(value, name))


def _given(row: Mapping) -> str:
    return " + ".join(row["ground_truth_layers"]).replace("_", " ") or "nothing"


def _values(row: Mapping) -> dict[str, Any]:
    return {**row["metrics"], **row.get("more_metrics", {}), "seam": row.get("seam")}


def _table(head: Sequence[str], body: Sequence[str]) -> str:
    cells = "".join(f"<th>{_escaped(h)}</th>" for h in head)
    return f'<div class="wrap"><table><tr>{cells}</tr>{"".join(body)}</table></div>'


def _metrics(rows: Sequence[Mapping]) -> str:
    """Every system in every combination of given layers; the best of those with the same layers given stands out."""
    good = [r for r in rows if not r.get("error")]
    every = [(r, part) for r in good for part in r["rows"]]
    names = [n for n in MEASURES if any(_values(part).get(n) is not None for _, part in every)]
    best: dict[tuple[str, str], float] = {}
    for given in {_given(part) for _, part in every}:
        of_given = [_values(part) for _, part in every if _given(part) == given]
        for n in names:
            found = [v[n] for v in of_given if v.get(n) is not None]
            if len(found) > 1:
                best[given, n] = (max if n in MORE_IS_BETTER else min)(found)
    body = []
    for row in rows:
        if row.get("error"):
            body.append(
                f'<tr class="first"><td>{_escaped(row["label"])}</td>'
                f'<td class="fail" colspan="{len(names) + 1}">{_escaped(row["error"])}</td></tr>'
            )
            continue
        for k, part in enumerate(row["rows"]):
            values, given = _values(part), _given(part)
            cells = "".join(
                f'<td class="{"best" if values.get(n) is not None and best.get((given, n)) == values[n] else ""}">'
                f"{_digits(values.get(n), n)}</td>"
                for n in names
            )
            mark = ' class="first model"' if k == 0 else ""
            label = _escaped(row["label"]) if k == 0 else ""
            body.append(f"<tr{mark}><td>{label}</td><td>{_escaped(given)}</td>{cells}</tr>")
    for name, values in (good[0]["baselines"] if good else {}).items():
        more = {**values, **good[0].get("more_baselines", {}).get(name, {})}
        cells = "".join(f"<td>{_digits(more.get(n), n)}</td>" for n in names)
        body.append(f'<tr class="first"><td>{_escaped(name.replace("_", " "))}</td><td>–</td>{cells}</tr>')
    return _table(["", "given (true) layers", *(LABELS.get(n, n) for n in names)], body)


def _response(rows: Sequence[Mapping]) -> str:
    """Lips and eyes against the truth, a line for each system."""
    shown = [r for r in rows if not r.get("error") and r.get("response")]
    if not shown:
        return ""
    out = []
    for kind in ("lips", "eyes"):
        keys = list(shown[0]["response"][kind])
        body = []
        for row in shown:
            values = row["response"]
            cells = "".join(f"<td>{_digits(values[kind][k], k)}</td>" for k in keys)
            if kind == "lips":
                cells += "".join(f"<td>{_digits(values[k], k)}</td>" for k in ("silence_motion", "still_px"))
            body.append(f"<tr><td>{_escaped(row['label'])}</td>{cells}</tr>")
        head = [kind, *(LABELS.get(k, k) for k in keys)]
        head += [LABELS["silence_motion"], LABELS["still_px"]] if kind == "lips" else []
        out.append(_table(head, body))
    reasons = dict.fromkeys(
        f"{row['label']}: {why}" for row in shown for why in dict.fromkeys(row["response"].get("reasons", {}).values())
    )
    return "".join(out) + "".join(f"<p class=soft>{_escaped(r)}</p>" for r in reasons)


def _moved(rows: Sequence[Mapping]) -> str:
    """What each driving signal moves in each system."""
    shown = [r for r in rows if not r.get("error") and r.get("response")]
    signals = list(dict.fromkeys(s for r in shown for s, v in r["response"]["drive_test"].items() if v is not None))
    if not signals:
        return ""

    def cell(test: Mapping | None) -> str:
        if test is None:
            return "<td>–</td>"
        where = (test["region"] or "nowhere").replace("_", " ")
        return f"<td>{test['changed_px']:.0f} px, {_escaped(where)}</td>"

    body = [
        f"<tr><td>{_escaped(r['label'])}</td>{''.join(cell(r['response']['drive_test'].get(s)) for s in signals)}</tr>"
        for r in shown
    ]
    return _table(["one signal, low to high, changes", *signals], body)


def _bytes(n: int | None) -> str:
    return "–" if n is None else f"{n / 1e6:.1f} MB"


def _cost(rows: Sequence[Mapping]) -> str:
    good = [r for r in rows if not r.get("error")]
    most = max((r["speed"].get("render_fps") or 0 for r in good), default=0)
    body = []
    for r in good:
        plan, fps, seconds = r["schedule"], r["speed"].get("render_fps"), r["speed"].get("train_seconds")
        bar = f'<span class="bar" style="width:{4 * fps / most:.2f}rem"></span>' if fps and most else ""
        steps = ", ".join(f"{name} {n:,}" for name, n in plan["trained_steps"].items())
        cells = [
            "–" if seconds is None else f"{seconds / 60:.1f} of {r['budget']:g}",
            f"{plan['scale']:.3g}" + (" (cut)" if plan["ended_early"] else ""),
            _escaped(steps),
            _digits(r["speed"].get("train_steps_per_s"), "x"),
            _digits(fps, "x") + bar,
            f"{r['params'].get('total', 0):,}",
            _bytes(r["bytes"]),
            "–" if r["watt_hours"] is None else f"{r['watt_hours']:.1f}",
        ]
        body.append(f"<tr><td>{_escaped(r['label'])}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    head = ["", "training, min", "schedule, of its own", "steps", "steps/s", "frames/s", "parameters", "avatar", "Wh"]
    return _table(head, body)


def _curves(rows: Sequence[Mapping]) -> list[str]:
    good = [r for r in rows if not r.get("error") and r["curves"]["minutes"]]
    plots = []
    for name, title in (("psnr", "PSNR of the training pixels, dB"), ("loss", "loss (each system's own)")):
        parts = [(r["label"], r["curves"]["minutes"], r["curves"][name]) for r in good]
        parts = [(label, x, [np.nan if v is None else v for v in y]) for label, x, y in parts]
        if parts:
            plots.append(line_plot(title, parts, "minutes of training", log=name == "loss", width=6.2))
    for kind, title in (("lips", "lip gap"), ("eyes", "eye opening")):
        found = [(r["label"], (r.get("response") or {}).get("curves", {}).get(kind)) for r in good]
        found = [(label, c) for label, c in found if c]
        if found:
            first = found[0][1]
            parts = [("truth", first["frame"], first["true"]), *((s, c["frame"], c["rendered"]) for s, c in found)]
            parts = [_with_gaps(*part) for part in parts]
            plots.append(line_plot(f"{title} of held-out frames", parts, "frame", width=12.6))
    return plots


def _with_gaps(label: str, frames: Sequence[int], values: Sequence) -> tuple[str, list, list]:
    """The line breaks where frames do not follow one another."""
    x, y = [], []
    for frame, value in zip(frames, values, strict=True):
        if x and frame != x[-1] + 1:
            x.append(frame)
            y.append(np.nan)
        x.append(frame)
        y.append(np.nan if value is None else value)
    return label, x, y


def sections(rows: Sequence[Mapping]) -> list[str]:
    """The tables of a page: pictures, lips and eyes, what signals move, cost."""
    response = _response(rows)
    return [
        "<h2>Pictures</h2>",
        _metrics(rows),
        "<p class=soft>The given layers are the truth's own pixels in the picture: compare rows whose given layers are "
        "equal. Coloured: the best of those.</p>",
        "<h2>Does it speak and blink</h2>" + response if response else "",
        _moved(rows),
        "<h2>Cost</h2>",
        _cost(rows),
    ]


def page(tree: Mapping[str, Any], stills: Sequence[tuple[str, np.ndarray]], video: Path | None, folder: Path) -> str:
    """The html of a compare.json. stills: captioned pictures for the top; video: beside the page or in it."""
    tree = report.finite(tree)
    rows = tree["rows"]
    drawn = report.can_plot()
    curves = _curves(rows) if drawn else []
    scored = {r["split"]["scored_frames"] for r in rows if not r.get("error")}
    frames = " or ".join(str(n) for n in sorted(scored)) or "no"
    what = f"{tree['subject']}: {len(rows)} system{'s' if len(rows) != 1 else ''} on the same clip"
    reports = " · ".join(f'<a href="{_escaped(at)}">{_escaped(label)}</a>' for label, at in tree["reports"].items())
    reasons = dict.fromkeys(
        f"{r['label']}: {name}: {why}" for r in rows if not r.get("error") for name, why in r["reasons"].items()
    )
    parts = [
        f"<h1>{_escaped(what)}</h1>",
        f"<p class=soft>{tree['budget_minutes']:g} minutes of training each, {frames} held-out frames scored "
        f"(--split={_escaped(tree['split'])}); {_escaped(tree['versions'].get('device', ''))}. "
        f"{_escaped(tree['consent'])}</p>",
        f'<div class="lead">{picture_figures(stills)}</div>'.replace('class="frames"', 'class="stills"'),
        f'<div class="videos">{video_figure(video, "The same held-out frames: " + tree["shown"], folder)}</div>'
        if video is not None
        else "",
        *sections(rows),
        f"<h2>Curves</h2>{plot_figures(curves)}" if curves else "",
        "" if drawn else "<p class=soft>No curves: matplotlib is not installed (tkjax[eval] has it).</p>",
        f"<h2>The reports</h2><p>{reports}</p>" if reports else "",
        pair_table("How the numbers are made", tree["notes"]),
        "".join(f"<p class=soft>{_escaped(r)}</p>" for r in reasons),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>tkjax comparison: {_escaped(tree['subject'])}</title><style>{report.STYLE}{STYLE}</style></head><body>"
        + "\n".join(s for s in parts if s)
        + "<p class=soft>All faces on this page outside the truth pictures are synthetic.</p></body></html>\n"
    )
