"""The modes of launch.py: each reads the parsed options and calls a function of plain arguments."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tkjax import synthetic
from tkjax.app import demo, doctor, exporting, importing, workflow
from tkjax.app.options import DRIVING, PREPARING, Options
from tkjax.drive import motion
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
    named = given(opts, "dataset", "paste_back")
    workflow.evaluate_avatar(Path(opts.workdir), models=opts.models_dir, **named)


def render(opts: Options) -> None:
    window = opts.smooth_path_window or motion.SMOOTH_WINDOW
    driving = given(opts, *DRIVING)
    driving["smooth_window"] = window if opts.smooth_path or opts.smooth_path_window else 0
    named = given(opts, "audio", "watermark", "paste_back", "alpha", "maps", "torso")
    workflow.render(Path(opts.workdir), opts.out, driving=driving, **named)


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
    "train": train,
    "render": render,
    "eval": evaluate,
    "import": lambda o: importing.run(o.source, o.workdir, **given(o, "system", "weights", "dataset")),
    "export": lambda o: exporting.run(o.workdir, o.out),
    "synthetic": make_synthetic,
    "demo": run_demo,
    "mux": put_sound_under,
    "doctor": lambda o: print("\n".join(doctor.report(o.models_dir))),
}
