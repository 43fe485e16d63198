"""What the commands do, as functions of plain arguments: a notebook calls them as the command line does.

What a workdir holds: `workdir`. None of these knows a concrete system.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from tkjax import config, contract
from tkjax.app import lock, speaking
from tkjax.app.workdir import (
    DATASET,
    dataset_of,
    existing_workdir,
    preprocess_seconds,
    read_facts,
    stop_on_failures,
    update_facts,
)
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.drive import driver, own_sound, sheet, stream
from tkjax.errors import UserError
from tkjax.host import torch_side
from tkjax.host.files import writing
from tkjax.interface import Model
from tkjax.measure import curves, evaluate, folders, report, text_report
from tkjax.measure.layers import paste_back_of
from tkjax.measure.report import Report
from tkjax.models import load_system
from tkjax.ops import dispatch
from tkjax.signals import SOUND
from tkjax.train import devices, loop, plan
from tkjax.types import SubjectInfo

Overrides = Sequence[tuple[str, str]]  # settings of the config by their dotted names
Processes = tuple[str | None, int | None, int | None]  # host:port of the first, how many, which one this is
ALONE: Processes = (None, None, None)
OF_ANY_DATASET = {"models_dir", "accept", "models_mirror", "offline"}  # settings of preprocessing that mean more


# ---------------------------------------------------------------- config


def default_variant() -> str:
    variant = "cpu" if jax.default_backend() == "cpu" else "full"
    print(f"config: no variant named; {variant}, because JAX finds {jax.devices()[0].device_kind}", flush=True)
    return variant


def resolve(workdir: Path, spec: str | None = None, overrides: Overrides = ()) -> ConfigDict:
    """The config of a spec (`path.py:variant` or a config.json), else the workdir's own, else the default; overrides go
    in last."""
    if spec is None:
        spec = str(workdir / "config.json") if (workdir / "config.json").is_file() else config.DEFAULT_SPEC
        print(f"config: {spec}", flush=True)
    resolved = config.load(spec, overrides, default_variant)
    try:
        load_system(resolved.system, stored=config.split_spec(spec)[0].endswith(".json"))
    except (ValueError, ImportError) as error:
        raise UserError(f"--config: {error}") from error
    use_backend(resolved.get("ops_backend", ""))  # a config.json of an older run has none
    return resolved


def use_backend(name: str) -> None:
    """Kernels of this process: the config's, else those of TKJAX_OPS_BACKEND, else the best. An avatar that was trained
    elsewhere is drawn with what is here, so `render` and `eval` give none."""
    try:
        dispatch.set_default(name or None)
        dispatch.preferred()
    except ValueError as error:
        raise UserError(str(error)) from error


def open_clip(dataset: Path, workdir: Path, resolved: ConfigDict) -> DatasetClip:
    d = resolved.data
    kept_out = d.get("split", "last")  # a config.json of an older run has none
    return DatasetClip(
        dataset, workdir / "cache", size=d.size, preload=d.preload, audio_kind=d.audio_kind, split=kept_out
    )


def reduced(stored: tuple[int, int], trained: tuple[int, int]) -> str:
    """One line where training sees smaller pictures (h, w) than the dataset holds, else ""."""
    (h, w), (small_h, small_w) = stored, trained
    if stored == trained:
        return ""
    return (
        f"data: pictures of {w}x{h} are reduced to {small_w}x{small_h} for training; --config.data.size={max(stored)} "
        "keeps them"
    )


# ---------------------------------------------------------------- preprocess


def preprocess(workdir: Path, video: str, settings: Mapping[str, Any] = {}) -> None:
    """Video -> WORKDIR/dataset, in the child process; what is there already is kept. settings: flags of
    `python -m preprocess` by name."""
    if not Path(video).is_file():
        raise UserError(f"--video: there is no file {video}")
    with lock.alone(workdir):
        make_dataset(workdir, video, settings)


def make_dataset(workdir: Path, video: str, settings: Mapping[str, Any]) -> None:
    """`preprocess` for a caller that holds the workdir's lock."""
    torch_side.run("preprocess", preprocess_arguments({"video": video, "workdir": str(workdir), **settings}))
    update_facts(Path(workdir), dataset=DATASET, video=str(video))


def track(video: str, out: str, settings: Mapping[str, Any] = {}) -> None:
    """Video -> a track of channels that drives avatars, in the child process. settings: flags of
    `python -m preprocess.video_track` by name."""
    if not Path(video).is_file():
        raise UserError(f"--video: there is no file {video}")
    if Path(out).exists() and Path(out).samefile(video):
        raise UserError(f"--out={out} is the video; name another file, so that it stays")
    torch_side.run("preprocess.video_track", preprocess_arguments({"video": video, "out": out, **settings}))


def preprocess_arguments(settings: Mapping[str, Any]) -> list[str]:
    return [f"--{n}={','.join(v) if isinstance(v, tuple) else v}" for n, v in settings.items()]


# ---------------------------------------------------------------- train, evaluate


def consent_record(statement: str | None, asked: bool) -> dict[str, Any]:
    if statement:
        return {"statement": statement, "asked": asked}
    return {"statement": None, "asked": False, "reason": "synthetic or imported dataset, not a video of a person"}


def train_and_save(
    resolved: ConfigDict, dataset: Path, workdir: Path, consent: dict, stages=None, *, stop: loop.Stop | None = None,
    watch: loop.Event | None = None,
) -> DatasetClip:  # fmt: skip
    """Every stage (or those named), then the avatar. Continues what is there. The caller holds the workdir's lock.
    stop: see `loop.train`; watch: gets its events."""
    clip = open_clip(dataset, workdir, resolved)
    if (
        word := reduced((clip.dataset.height, clip.dataset.width), (clip.height, clip.width))
    ) and jax.process_index() == 0:
        print(word, flush=True)

    def on_event(name: str, facts: dict) -> None:
        if watch is not None:
            watch(name, facts)
        if name == "stage" and jax.process_index() == 0:  # the trainer has accepted this config for this workdir
            config.write(resolved, workdir / "config.json")
            update_facts(workdir, dataset=os.path.relpath(dataset, workdir), consent=consent)

    variables = loop.train(resolved, clip, workdir, stages=stages, on_event=on_event, stop=stop)
    done = plan.finished(resolved, clip.info, workdir)

    def save() -> None:
        model = load_system(resolved.system)(resolved, clip.info)
        speaks = speaking.network_of(resolved, clip, workdir, model)
        steps = {stage.name: stage.steps for stage in plan.stages_of(resolved, model, workdir)}
        audio, folder = bundle.audio_spec(clip.audio), workdir / "avatar"
        name = bundle.save(folder, resolved, variables, steps[done[-1]], clip, audio, consent, done, speaks)
        print(f"avatar {name}: {workdir / 'avatar'} (stages {', '.join(done)})", flush=True)

    devices.by_the_first(save, "avatar")  # all wait: a process that waits 5 minutes at its exit ends the others
    return clip


def score(
    workdir: Path,
    clip: DatasetClip,
    models: str | None,
    extra: dict | None = None,
    videos=(),
    paste_back: str | None = None,
    metrics: Sequence[str] | None = None,
) -> Report:
    """Evaluate the saved avatar; report.json, report.html, comparison.mp4, evaluation_report.txt and metrics_plot.png.
    `extra` goes into the report. metrics: which are computed, names of `scores.OF_METRIC`; None for all."""
    subject = bundle.load(workdir / "avatar")
    model = subject.model()
    wrong = _difference(subject, clip, model)
    if wrong:
        raise UserError(
            f"{clip.dataset.root} does not fit the avatar: its {wrong}; evaluate on the dataset that it was trained on"
        )
    settings, stages = subject.config.eval, list(subject.meta["stages"])
    with contextlib.closing(subject):
        result, worst = evaluate.evaluate(
            clip,
            model,
            subject.variables(model),
            subject.meta["step"],
            workdir,
            system=subject.config.system,
            max_frames=settings.max_frames,
            chunk_rays=settings.chunk_rays,
            models=models,
            marks=stream.mark(subject),
            stages=stages,
            paste=paste_back_of(subject, clip, paste_back),
            metrics=metrics,
        )
    rows = report.read_metrics(workdir / "metrics.jsonl")
    speed = evaluate.training_speed(rows)
    speed |= {"render_fps": result.pop("render_fps"), "preprocess_seconds": preprocess_seconds(workdir)}
    if speed["preprocess_seconds"] is None:
        result["reasons"]["preprocess_seconds"] = "the dataset was there already"
    facts = {"split": result["split"], "speed": speed, "versions": evaluate.versions(), "stages": stages}
    result |= facts
    for row in result["rows"]:
        row |= facts | {"speed": speed | {"render_fps": row.pop("render_fps")}}
    result |= {"subject": clip.dataset.manifest["subject"], "avatar": subject.id, "consent": subject.meta["consent"]}
    extra = dict(extra or {})
    result["notes"] |= evaluate.perceptual_note(subject.config, stages) | extra.pop("notes", {})
    made = Report(**result, config=config.to_dict(subject.config), **extra)
    shown = [*videos, (workdir / evaluate.COMPARISON, f"Held-out frames: {', '.join(made.comparison)}")]
    report.write(workdir, made, worst, shown)
    text_report.write(workdir, scored(made), report.can_plot())
    facts = {"metrics": made.metrics, "response": made.response}
    report.log(workdir / "metrics.jsonl", {"stage": stages[-1], "step": subject.meta["step"], **facts})
    print_scores(made)
    print(f"report: {workdir / 'report.html'}", flush=True)
    return made


def scored(made: Report) -> text_report.Scored:
    """The first row of a report for its plain text."""
    frames = made.per_frame["frame"]
    facts = {
        "subject": made.subject,
        "system": f"{made.system} (given: {' + '.join(made.ground_truth_layers)})",
        "frames": f"{len(frames)} held out, {frames[0]}..{frames[-1]}, paired by number",
        "size": f"{made.size[1]}x{made.size[0]}",
    }
    values = {k: [math.nan if v is None else v for v in values] for k, values in made.per_frame.items() if k != "frame"}
    reasons = {k: why for names, why in made.reasons.items() for k in names.split(", ")}
    distance = made.more_metrics["fid"]
    return text_report.Scored(facts, frames, values, {"fid": math.nan if distance is None else distance}, reasons)


def evaluate_folders(
    generated: str, truth: str, out: str, *, metrics: Sequence[str] | None = None, models: str | None = None
) -> text_report.Scored:
    """Score frames made elsewhere, paired by number: OUT/report.json, evaluation_report.txt, metrics_plot.png."""
    for metric in metrics or ():
        if metric not in folders.METRICS:
            raise UserError(
                f"--metrics={metric} needs an avatar; with --generated choose some of {', '.join(folders.METRICS)}"
            )
    result = folders.score(generated, truth, metrics, models)
    keys = [k for section in text_report.SECTIONS.values() for k in section]
    means = {k: result.mean_std(k) for k in keys}
    tree = {
        **result.facts,
        "metrics": {k: None if v is None else v[0] for k, v in means.items()},
        "spread": {k: None if v is None else v[1] for k, v in means.items() if k != "fid"},
        "reasons": dict(result.reasons),
        "per_frame": {"frame": list(result.frames), **{k: v for k, v in result.per_frame.items() if len(v)}},
    }
    with writing(f"--out={out}"):
        Path(out).mkdir(parents=True, exist_ok=True)
    report.write_json(Path(out) / "report.json", tree)
    text_report.write(Path(out), result, report.can_plot())
    print(text_report.text(result), flush=True)
    return result


def _difference(subject: bundle.Avatar, clip: DatasetClip, model: Model) -> str:
    """In what a dataset differs from the one that an avatar was trained on, as far as its model can tell."""

    def sizes(info: SubjectInfo) -> dict[str, Any]:
        found = info.sizes()
        of_signals = {use.name: found["signals"].get(use.name) for use in model.signals()}
        kind = info.signal(SOUND).kind if SOUND in of_signals and info.has(SOUND) else None
        return {**{k: v for k, v in found.items() if k != "signals"}, **of_signals, "kind of sound": kind}

    here, there = sizes(subject.info), sizes(clip.info)
    return ", ".join(f"{k} is {there[k]}, not {v}" for k, v in here.items() if v != there[k])


def print_scores(made: Report) -> None:
    """One line per row and baseline of the report."""
    columns = [*made.metrics, *(k for k in evaluate.SEAM_KEYS if getattr(made, k) is not None)]

    def line(name: str, m: dict) -> str:
        digits = {k: 4 if k in ("ssim", "lmd_norm") else 2 for k in columns}
        shown = ("–" if m.get(k) is None else f"{m[k]:.{digits[k]}f}" for k in columns)
        return f"{name:32}" + "".join(f"{v:>{max(12, len(k) + 2)}}" for k, v in zip(columns, shown))

    print(f"{'held-out frames':32}" + "".join(f"{k:>{max(12, len(k) + 2)}}" for k in columns))
    for row in made.rows:
        print(line(f"{made.system} over {' + '.join(row['ground_truth_layers'])}", row["metrics"] | row))
    for name, m in made.baselines.items():
        print(line(name, m))
    print("given layers: " + " + ".join(made.ground_truth_layers), flush=True)
    if made.response is not None:
        print(curves.lines(made.response), flush=True)


def fit(
    workdir: Path, spec: str | None = None, overrides: Overrides = (), *, video: str | None = None,
    dataset: str | None = None, consent: str | None = None, stages: Sequence[str] | None = None,
    preparing: Mapping[str, Any] = {}, paste_back: str | None = None, processes: Processes = ALONE,
) -> None:  # fmt: skip
    """Preprocess what is missing, train every stage, save the avatar, evaluate, report."""
    if video and dataset:
        raise UserError("--video and --dataset exclude each other; give the clip or the finished dataset")
    if video and not consent:
        raise UserError(
            "--mode=fit --video needs --consent: an avatar puts words into a person's mouth, so say who agreed to it "
            'and how, for example --consent="my own face"; it is stored in the avatar and shown in the report'
        )
    if video and not Path(video).is_file():
        raise UserError(f"--video: there is no file {video}")
    loop.initialise_distributed(*processes)
    resolved = resolve(workdir, spec, overrides)
    for name in preparing:
        if name not in OF_ANY_DATASET and not video:
            raise UserError(f"--{name} concerns --video; a dataset that is there keeps its own")
    root = workdir / DATASET if video else dataset_of(workdir, dataset)
    models = preparing.get("models_dir")
    with lock.alone(workdir):
        if video:
            devices.by_the_first(lambda: make_dataset(workdir, video, preparing), "preprocessing")
        if not (root / contract.MANIFEST).is_file():
            raise UserError(f"{root} is not there; all processes of a run need the same --workdir")
        stop_on_failures(root, preparing.get("accept") or ())
        record = consent_record(consent, bool(video))
        if not dataset and not video:  # continuing: what was said before still holds
            record = read_facts(workdir).get("consent") or record
        clip = train_and_save(resolved, root, workdir, record, stages)
        devices.by_the_first(lambda: score(workdir, clip, models, paste_back=paste_back), "evaluation")


def train(
    workdir: Path, spec: str | None = None, overrides: Overrides = (), *, dataset: str | None = None,
    consent: str | None = None, stages: Sequence[str] | None = None, processes: Processes = ALONE,
) -> None:  # fmt: skip
    """Every stage (or those named) on a dataset that is there, then the avatar."""
    loop.initialise_distributed(*processes)
    resolved = resolve(workdir, spec, overrides)
    stored = read_facts(workdir)
    statement = consent or (stored.get("consent") or {}).get("statement")
    record = consent_record(statement, "video" in stored)
    if "video" in stored and not dataset and not statement:
        raise UserError(
            f"the dataset of {workdir} shows a person (it was made from a video), so training needs --consent: "
            "say who agreed to the avatar and how"
        )
    root = dataset_of(workdir, dataset)
    with lock.alone(workdir):
        train_and_save(resolved, root, workdir, record, stages)


def evaluate_avatar(
    workdir: Path, *, dataset: str | None = None, models: str | None = None, paste_back: str | None = None,
    metrics: Sequence[str] | None = None,
) -> Report:  # fmt: skip
    """`score` for the avatar of a workdir on its dataset, or on the one given."""
    workdir = existing_workdir(workdir)
    use_backend("")
    subject = bundle.load(workdir / "avatar")
    root = dataset_of(workdir, dataset)
    with lock.alone(workdir):
        clip = open_clip(root, workdir, subject.config)
        return score(workdir, clip, models, paste_back=paste_back, metrics=metrics)


# ---------------------------------------------------------------- render


def render(
    workdir: Path, out: str, *, audio: str | None = None, driving: Mapping[str, Any] = {}, watermark: bool = False,
    paste_back: str | None = None, alpha: bool = False, maps: Sequence[str] = (), torso: str | None = None,
) -> int:  # fmt: skip
    """Let the avatar of a workdir speak or move; the number of frames. audio: a sound file, or `own`, the clip's sound
    of the frames that are played. driving: further arguments of `driver.plan`."""
    workdir, path = existing_workdir(workdir), Path(out)
    if audio == own_sound.OWN:
        with tempfile.TemporaryDirectory() as folder:
            subject = bundle.load(workdir / "avatar")
            found = own_sound.cut(subject, dataset_of(workdir, None), driving, Path(folder))
            driving = {**driving, **{k: v for k, v in found.items() if k == "features"}}
            how = {"watermark": watermark, "paste_back": paste_back, "alpha": alpha, "maps": maps, "torso": torso}
            return render(workdir, out, audio=found["audio"], driving=driving, **how)
    if audio is not None and not Path(audio).is_file():
        raise UserError(f"--audio: there is no file {audio}")
    stream.check_out(path, alpha, maps)
    for name in ("audio", "drive", "pose", "eye"):
        _keep(path, maps, audio if name == "audio" else driving.get(name), name)
    use_backend("")
    subject = bundle.load(workdir / "avatar")
    drives = driver.plan(subject, audio=audio, **driving)
    n = stream.render(
        subject,
        drives,
        path,
        visible_mark=watermark,
        paste_back=paste_back,
        alpha=alpha,
        maps=maps,
        torso=torso,
    )
    print(f"{path}: {n} frames, marked as synthetic (avatar {subject.id})")
    return n


def draw_sheet(workdir: Path, out: str) -> int:
    """A picture of what each coefficient of a workdir's avatar does; the number of its rows."""
    sheet.check_out(out)
    use_backend("")
    subject = bundle.load(existing_workdir(workdir) / "avatar")
    with contextlib.closing(subject):
        n = sheet.draw(subject, out)
    print(f"{out}: {n} coefficients, marked as synthetic (avatar {subject.id})")
    return n


def _keep(out: Path, maps: Sequence[str], given: str | None, flag: str) -> None:
    """UserError where the result would take the place of a file that drives it."""
    for written in (out, *(stream.map_path(out, name) for name in maps)):
        if given is not None and written.exists() and Path(given).exists() and written.samefile(given):
            what = "the sound to speak" if flag == "audio" else f"what --{flag} names"
            raise UserError(f"--out={out}: {written} is {what}; name another file, so that it stays")
