"""The modes of launch.py: each reads the parsed options and calls a function of plain arguments."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tkjax import synthetic
from tkjax.app import compare, demo, doctor, exporting, importing, speaking, workflow
from tkjax.app.options import DRIVING, FLAGS, PREPARING, Options
from tkjax.drive import motion
from tkjax.errors import UserError
from tkjax.media import mux


def run(opts: Options) -> None:
    """Do what --mode says."""
    if opts.models_dir:  # also for what looks for its files deep inside, such as the perceptual term of training
        os.environ["TKJAX_MODELS"] = str(opts.models_dir)
    MODES[opts.mode](opts)


def given(opts: Options, *names: str) -> dict[str, Any]:
    """The flags of these names that the user gave."""
    return {name: opts.flags[name] for name in names if name in opts.flags}


def overrides(opts: Options) -> list[tuple[str, str]]:
    """Settings of the config; flags that stand for some go in last."""
    stand_for = (("data.preload", opts.preload), ("data.split", opts.split), ("seed", opts.seed))
    return [*opts.overrides, *((k, str(v)) for k, v in stand_for if v is not None)]


def processes(opts: Options) -> workflow.Processes:
    return opts.coordinator_address, opts.num_processes, opts.process_id


def preprocess(opts: Options) -> None:
    workflow.preprocess(Path(opts.workdir), opts.video, given(opts, *PREPARING))


def track(opts: Options) -> None:
    workflow.track(opts.video, opts.out, given(opts, "models_dir", "models_mirror", "offline", "min_face"))


def fit(opts: Options) -> None:
    named = given(opts, "video", "dataset", "consent", "stages", "paste_back")
    preparing = given(opts, *PREPARING)
    workflow.fit(
        Path(opts.workdir), opts.config, overrides(opts), preparing=preparing, processes=processes(opts), **named
    )


def train(opts: Options) -> None:
    named = given(opts, "dataset", "consent", "stages")
    workflow.train(Path(opts.workdir), opts.config, overrides(opts), processes=processes(opts), **named)


def evaluate(opts: Options) -> None:
    of_frames = given(opts, "generated", "truth", "out")
    if not of_frames:
        if not opts.workdir:
            raise UserError(
                f"--mode=eval needs --workdir: {FLAGS['workdir'].about} (or --generated, --truth and --out)"
            )
        named = given(opts, "dataset", "paste_back", "metrics")
        workflow.evaluate_avatar(Path(opts.workdir), models=opts.models_dir, **named)
        return
    for name in ("generated", "truth", "out"):
        if name not in of_frames:
            raise UserError(f"--mode=eval of frames made elsewhere needs --{name}: {FLAGS[name].about}")
    for name in ("workdir", "dataset", "paste_back"):
        if name in opts.flags:
            raise UserError(f"--{name} concerns an avatar; frames of --generated are scored without it")
    workflow.evaluate_folders(**of_frames, models=opts.models_dir, **given(opts, "metrics"))


def render(opts: Options) -> None:
    window = opts.smooth_path_window or motion.SMOOTH_WINDOW
    driving = given(opts, *DRIVING)
    driving["smooth_window"] = window if opts.smooth_path or opts.smooth_path_window else 0
    named = given(opts, "audio", "watermark", "paste_back", "alpha", "maps", "torso")
    workflow.render(Path(opts.workdir), opts.out, driving=driving, **named)


def compare_systems(opts: Options) -> None:
    if opts.config:
        raise UserError("--mode=compare takes --configs (several), not --config; --config.key=value sets a key of all")
    named = given(opts, "video", "dataset", "consent", "budget_minutes")
    preparing = given(opts, *PREPARING)
    compare.run(Path(opts.workdir), opts.configs, overrides(opts), preparing=preparing, **named)


def put_sound_under(opts: Options) -> None:
    made = mux.mux(opts.video, opts.audio, opts.out, **given(opts, "vcodec", "acodec", "crf"))
    print(f"{opts.out}: {made.seconds:.2f} s, pictures {made.video}, sound {made.sound}")


def make_synthetic(opts: Options) -> None:
    synthetic.make(Path(opts.out), **given(opts, "seconds", "size", "seed", "motion"))
    print(f"{opts.out}/clip.mp4 and {opts.out}/dataset")


def run_demo(opts: Options) -> None:
    split = [] if opts.split is None else [("data.split", opts.split)]
    demo.run(
        Path(opts.workdir or demo.WORKDIR),
        opts.config or demo.CONFIG,
        [*opts.overrides, *split],
        subject=given(opts, *demo.SUBJECT),
        models=opts.models_dir,
    )


MODES: dict[str, Callable[[Options], None]] = {
    "fit": fit,
    "preprocess": preprocess,
    "track": track,
    "train": train,
    "render": render,
    "sheet": lambda o: workflow.draw_sheet(Path(o.workdir), o.out),
    "voice": lambda o: speaking.coefficients(
        o.workdir, o.audio, o.out, **given(o, "set", "scale", "offset", "data_range", "poses")
    ),
    "eval": evaluate,
    "import": lambda o: importing.run(o.source, o.workdir, **given(o, "system", "weights", "dataset")),
    "export": lambda o: exporting.run(o.workdir, o.out),
    "synthetic": make_synthetic,
    "demo": run_demo,
    "compare": compare_systems,
    "mux": put_sound_under,
    "doctor": lambda o: print("\n".join(doctor.report(o.models_dir))),
}
