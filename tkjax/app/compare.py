"""--mode=compare: several systems on the same shards, for the same minutes of training each, on one page.

WORKDIR/dataset (or --dataset) is shared. WORKDIR/systems/LABEL/ is a workdir of its own for each system, as `fit`
leaves it, with two files more: `schedule.json`, how long its stages are, and `row.json`, its row of the comparison when
it is finished. So the same command again, whatever ended the last one, keeps the finished systems and continues the
others.

The budget is of training steps (no compiling, no evaluation). A short trial of every stage measures its steps per
second; if the system's own schedule would take longer, all of it is shortened by one factor (`config.shortened`), so
that learning rates still run to their ends. Where the estimate was wrong, the stage under way ends when the minutes are
over, and later ones are left out.
"""

import gc
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from tkjax import config, contract
from tkjax.app import lock, workflow
from tkjax.app.workdir import dataset_of, read_facts, stop_on_failures
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.drive import stream
from tkjax.errors import UserError, of_files
from tkjax.host import stored
from tkjax.host.energy import Meter
from tkjax.host.files import write_atomic
from tkjax.measure import compare_page, evaluate, report, side_by_side
from tkjax.models import load_system
from tkjax.train import loop, plan

BUDGET_MINUTES = 15.0
SYSTEMS, SCHEDULE, ROW, SPENT = "systems", "schedule.json", "row.json", "spent.json"
PAGE, JSON, VIDEO = "compare.html", "compare.json", "compare.mp4"
TRIAL_SHARE, TRIAL_LEAST_S, TRIAL_MOST_S = 0.03, 1.0, 30.0  # of the budget, for every stage; seconds
TRIAL_STEPS = 6  # at least, of a stage that has them
TRIAL_LOG = 2  # steps between two looks at the clock
RESERVE = 0.95  # of the budget is planned for
LABEL = re.compile(r"[A-Za-z0-9_.-]+")
NOTES = {
    "budget": "minutes of training steps, without compiling and evaluation. A trial of every stage measures steps per "
    "second; a schedule that would take longer is shortened by one factor, all stages alike, with its rates; what is "
    "still under way when the minutes are over ends there (cut)",
    "given layers": "the true torso or background under or over the model's picture; a row that is given more is "
    "easier, so only rows with equal layers compare",
    "avatar": "bytes of the avatar's folder: parameters in float32 and what it keeps of the clip; bytes_parameters are "
    "the parameters alone",
    "watt-hours": "of the processors' packages during training, by their own counters (RAPL); other devices, memory "
    "and power supply are not in it",
}


def specs_of(names: Sequence[str]) -> dict[str, str]:
    """Label -> config spec, of `name[:variant]` or `path.py[:variant]`."""
    out: dict[str, str] = {}
    for name in names:
        path, variant = config.split_spec(name)
        if not path.endswith((".py", ".json")):
            known = config.systems()
            if path not in known:
                raise UserError(f"--configs={name}: there is no config {path!r}; {config.near(path, known)}")
            path = f"configs/{path}.py"
        resolved = config.load(path if variant is None else f"{path}:{variant}", (), workflow.default_variant)
        label = f"{Path(path).stem}-{variant or resolved.get('variant') or 'full'}"
        if not LABEL.fullmatch(label):
            raise UserError(f"--configs={name}: {label!r} is no name of a folder; use letters, digits, - and _")
        if label in out:
            raise UserError(f"--configs names {name} twice; name each once")
        out[label] = path if variant is None else f"{path}:{variant}"
    return out


def run(
    workdir: Path, configs: Sequence[str], overrides: workflow.Overrides = (), *, video: str | None = None,
    dataset: str | None = None, consent: str | None = None, budget_minutes: float = BUDGET_MINUTES,
    preparing: Mapping[str, Any] = {},
) -> dict[str, Any]:  # fmt: skip
    """Train, evaluate and compare; the content of compare.json. overrides: settings of all configs (data.split, …).

    Raises:
      UserError: nothing can be compared: a config, the clip or the workdir is not usable, or every system failed.
    """
    if video and dataset:
        raise UserError("--video and --dataset exclude each other; give the clip or the finished dataset")
    if video and not Path(video).is_file():
        raise UserError(f"--video: there is no file {video}")
    if video and not consent:
        raise UserError(
            "--mode=compare --video needs --consent: an avatar puts words into a person's mouth, so say who agreed to "
            'it and how, for example --consent="my own face"'
        )
    for name in preparing:
        if name not in workflow.OF_ANY_DATASET and not video:
            raise UserError(f"--{name} concerns --video; a dataset that is there keeps its own")
    specs = specs_of(configs)
    resolved = {label: workflow.resolve(workdir, spec, overrides) for label, spec in specs.items()}
    same_frames(resolved)
    with lock.alone(workdir):
        if video:
            workflow.make_dataset(workdir, video, preparing)
        root = dataset_of(workdir, dataset)
        stop_on_failures(root, preparing.get("accept") or ())
        record = workflow.consent_record(consent, bool(video))
        if not consent and not dataset:
            record = read_facts(workdir).get("consent") or record
        asked = {
            label: {
                "config": specs[label],
                "overrides": [list(o) for o in overrides],
                "budget_minutes": float(budget_minutes),
                "dataset": contract.Dataset(root, verify=False).digest,
            }
            for label in specs
        }
        for label in specs:  # before anything is trained
            check_asked(workdir / SYSTEMS / label, asked[label])
        rows = []
        for label in specs:
            system = System(workdir / SYSTEMS / label, label, resolved[label], root, record, asked[label])
            rows.append(system.row(preparing.get("models_dir")))
            jax.clear_caches()
            gc.collect()
            tree = write(workdir, rows, resolved, root, record, budget_minutes)
    if all(row.get("error") for row in rows):
        raise UserError(f"no system could be compared: {'; '.join(dict.fromkeys(r['error'] for r in rows))}")
    print(f"comparison: {workdir / PAGE}", flush=True)
    return tree


def same_frames(resolved: Mapping[str, ConfigDict]) -> None:
    """All score the same held-out frames: as few as the config that scores the fewest."""
    fewest = min((c.eval.max_frames for c in resolved.values() if c.eval.max_frames > 0), default=0)
    for c in resolved.values():
        with c.unlocked():
            c.eval.max_frames = fewest


def check_asked(folder: Path, asked: Mapping[str, Any]) -> None:
    """UserError where the folder of a system was begun with another budget, config, override or dataset."""
    path = folder / SCHEDULE
    if not path.is_file():
        return
    before = stored.read_json(path, f"remove {folder}").get("asked")
    for name, value in asked.items():
        old = before.get(name) if isinstance(before, dict) else None
        if old != value:
            raise UserError(
                f"{folder} was begun with {name} {old!r}, not {value!r}; use the same, or remove the folder, or name "
                "another --workdir"
            )


class System:
    """One system of a comparison, in a workdir of its own."""

    def __init__(
        self, folder: Path, label: str, resolved: ConfigDict, dataset: Path, consent: dict, asked: Mapping[str, Any]
    ):
        self.folder, self.label, self.config, self.dataset = folder, label, resolved, dataset
        self.consent, self.asked = consent, asked
        self.budget_s = 60 * asked["budget_minutes"]

    def row(self, models: str | None) -> dict[str, Any]:
        """Its row, made now or before; a failure is a row with its sentence."""
        path = self.folder / ROW
        if path.is_file():
            print(f"{self.label}: finished before", flush=True)
            return self._kept(path)
        print(f"{self.label}: {self.asked['budget_minutes']:g} minutes", flush=True)
        try:
            with lock.alone(self.folder):
                made = self._made(models)
        except Exception as error:  # the other systems go on, whatever it was
            sentence = str(error) if isinstance(error, UserError) else None
            sentence = of_files(error) if isinstance(error, OSError) else sentence
            if sentence is None:
                traceback.print_exc()
                sentence = f"it failed with {type(error).__name__}: {error}"
            sentence = " ".join(sentence.split())
            print(f"{self.label}: {sentence}", file=sys.stderr, flush=True)
            nothing = dict.fromkeys(("bytes", "bytes_parameters", "watt_hours"))
            return {
                "label": self.label,
                "system": self.config.system,
                "budget": self.asked["budget_minutes"],
                **nothing,
                "error": sentence,
            }
        report.write_json(path, made)
        return made

    def _kept(self, path: Path) -> dict[str, Any]:
        """A row that was made before, if the page can show it; the file may be a stranger's."""
        remedy = f"remove {path}, and the system is scored again"
        row = stored.read_json(path, remedy)
        try:
            usable = row["label"] == self.label and "error" not in row
            usable = usable and all(type(n) is int for n in (*row["per_frame"]["frame"], *row["size"]))
            compare_page.sections([row])
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            usable = False
        if not usable:
            raise UserError(f"{path} is damaged or of another version; {remedy}")
        return row

    def _made(self, models: str | None) -> dict[str, Any]:
        schedule = self.schedule()
        scaled = config.shortened(self.config, schedule["scale"])
        workflow.use_backend(scaled.get("ops_backend", ""))
        meter, before = Meter(), self._spent()
        looked = time.monotonic()

        def watch(name: str, facts: dict) -> None:
            nonlocal looked
            if name == "checkpoint" or time.monotonic() - looked > 60:
                looked, so_far = time.monotonic(), meter.watt_hours()
                if so_far is not None and before is not None:
                    write_atomic(self.folder / SPENT, json.dumps({"watt_hours": before + so_far}))

        clip = workflow.train_and_save(
            scaled, self.dataset, self.folder, self.consent, stop=self._stop(self.budget_s), watch=watch
        )
        energy = meter.watt_hours()
        made = workflow.score(self.folder, clip, models, paste_back="none")
        ended = plan.ended(self.folder)
        stages = plan.stages_of(scaled, load_system(scaled.system)(scaled, clip.info), self.folder)
        trained = {stage.name: stage.steps for stage in stages if stage.name in made.stages}
        reasons = {} if energy is not None else {"watt_hours": meter.reason}
        avatar = self.folder / "avatar"
        return made.to_json() | {
            "label": self.label,
            "budget": self.asked["budget_minutes"],
            "schedule": {k: schedule[k] for k in ("scale", "steps_per_s", "own_steps")}
            | {"trained_steps": trained, "ended_early": [name for name in ended if name in trained]},
            "bytes": sum(p.stat().st_size for p in avatar.rglob("*") if p.is_file()),
            "bytes_parameters": sum(p.stat().st_size for p in avatar.glob("params-*.npz")),
            "watt_hours": None if energy is None or before is None else before + energy,
            "reasons": {**made.reasons, **reasons},
            "curves": compare_page.training_curves(report.read_metrics(self.folder / "metrics.jsonl")),
        }

    def _spent(self) -> float | None:
        """Watt-hours of the training that is there already."""
        path = self.folder / SPENT
        if not path.is_file():
            return 0.0
        value = stored.read_json(path, f"remove {path}").get("watt_hours")
        return float(value) if isinstance(value, int | float) else None

    def _stop(self, limit_s: float) -> loop.Stop:
        """Whether the stages of the folder have used up so many seconds together."""
        others: dict[str, float] = {}

        def stop(stage: str, step: int, seconds: float) -> bool:
            if stage not in others:  # what the stages before took stands in metrics.jsonl
                rows = report.read_metrics(self.folder / "metrics.jsonl")
                last = {r["stage"]: r["seconds"] for r in rows if _timed(r)}
                others[stage] = sum(s for name, s in last.items() if name != stage)
            return others[stage] + seconds >= limit_s

        return stop

    def schedule(self) -> dict[str, Any]:
        """What schedule.json says; made by a trial where there is none: scale, and steps and speed of each stage."""
        path = self.folder / SCHEDULE
        if path.is_file():
            return stored.read_json(path, f"remove {self.folder}")
        clip = workflow.open_clip(self.dataset, self.folder, self.config)
        stages = plan.stages_of(self.config, load_system(self.config.system)(self.config, clip.info))
        speeds = self._trial(clip)
        own = {stage.name: stage.steps for stage in stages}
        needed = sum(steps / speeds[name] for name, steps in own.items() if name in speeds)
        scale = min(1.0, RESERVE * self.budget_s / needed) if needed > 0 else 1.0
        made = {"asked": self.asked, "scale": float(f"{scale:.4g}"), "steps_per_s": speeds, "own_steps": own}
        write_atomic(path, json.dumps(report.finite(made), indent=1) + "\n")
        said = ", ".join(f"{name} {speed:.3g} steps/s" for name, speed in speeds.items())
        print(f"{self.label}: {said}; its own schedule takes {needed / 60:.1f} min, scale {made['scale']}", flush=True)
        return made

    def _trial(self, clip: DatasetClip) -> dict[str, float]:
        """Steps per second of each stage, in a workdir that goes again."""
        folder = self.folder / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        tried = ConfigDict(self.config.to_dict())
        tried.train.log_every, tried.train.preview_every, tried.train.checkpoint_every = TRIAL_LOG, 0, 10**9
        each = min(max(TRIAL_SHARE * self.budget_s, TRIAL_LEAST_S), TRIAL_MOST_S)
        seen: dict[str, list[tuple[int, float]]] = {}

        def watch(name: str, facts: dict) -> None:
            if name == "row":
                seen.setdefault(facts["stage"], []).append((facts["step"], facts["seconds"]))

        def stop(stage: str, step: int, seconds: float) -> bool:
            return step > 0 and seconds >= each and (step >= TRIAL_STEPS or seconds >= 4 * each)

        try:
            loop.train(tried, clip, folder, on_event=watch, stop=stop)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return {stage: _speed(points) for stage, points in seen.items()}


def _timed(row: Mapping[str, Any]) -> bool:
    return "response" not in row and {"stage", "seconds"} <= set(row)


def _speed(points: Sequence[tuple[int, float]]) -> float:
    """Steps per second between the first and the last look; of the first alone where there is no other."""
    (first, began), (last, ended) = points[0], points[-1]
    if last > first and ended > began:
        return (last - first) / (ended - began)
    return first / max(began, 1e-6)


# ---------------------------------------------------------------- the page


def write(
    workdir: Path, rows: Sequence[Mapping], resolved: Mapping[str, ConfigDict], dataset: Path, consent: Mapping,
    budget_minutes: float,
) -> dict[str, Any]:  # fmt: skip
    """compare.json, compare.mp4 and compare.html of the rows so far; the content of compare.json."""
    manifest = contract.Dataset(dataset, verify=False).manifest
    good = [row for row in rows if not row.get("error")]
    columns = [_column(workdir, row) for row in good]
    stills, shown = [], ""
    if columns:
        largest = max(good, key=lambda row: row["size"][0])["label"]
        clip = workflow.open_clip(dataset, workdir / SYSTEMS / largest, resolved[largest])
        marks = _marks(workdir, good)
        stills = side_by_side.make(columns, clip, workdir / VIDEO, marks)
        shown = ", ".join(["truth", *(c.label for c in columns)])
    (split,) = {c.data.get("split", "last") for c in resolved.values()} or {"last"}
    tree = {
        "subject": manifest["subject"],
        "budget_minutes": float(budget_minutes),
        "split": split,
        "dataset": os.path.relpath(dataset, workdir),
        "consent": report.consent_text(consent),
        "reports": {row["label"]: f"{SYSTEMS}/{row['label']}/report.html" for row in good},
        "shown": shown,
        "video": VIDEO if stills else None,
        "rows": list(rows),
        "notes": {**NOTES, **(good[0]["notes"] if good else {})},
        "versions": evaluate.versions(),
    }
    report.write_json(workdir / JSON, tree)
    video = workdir / VIDEO if stills else None
    write_atomic(workdir / PAGE, compare_page.page(tree, stills, video, workdir))
    return tree


def _column(workdir: Path, row: Mapping) -> side_by_side.Column:
    """The row's picture with the fewest given layers, the last of its comparison video before the truth."""
    n = len(row["comparison"])
    given = " + ".join(row["rows"][n - 2]["ground_truth_layers"])
    video = workdir / SYSTEMS / row["label"] / evaluate.COMPARISON
    return side_by_side.Column(row["label"], f"given: {given}", video, n, n - 2, row["per_frame"]["frame"])


def _marks(workdir: Path, rows: Sequence[Mapping]) -> dict[str, str]:
    """Metadata of the video: that it is synthetic, and by which avatars."""
    marks = [stream.mark(bundle.load(workdir / SYSTEMS / row["label"] / "avatar")) for row in rows]
    return {key: "; ".join(dict.fromkeys(m[key] for m in marks if key in m)) for key in marks[0]}
