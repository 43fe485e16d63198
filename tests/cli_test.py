"""The command line: every mistake is one line and exit code 2, and nothing is written before it is sure."""

import json
import subprocess
import sys

import pytest

from tkjax import config
from tkjax.app import environment, options
from tkjax.errors import UserError


def launch(*arguments, cwd=config.ROOT):
    return subprocess.run(
        [sys.executable, str(config.ROOT / "launch.py"), *arguments], cwd=cwd, capture_output=True, text=True
    )


def parse(*arguments):
    return options.parse(["launch.py", *arguments])


RENDER = ("--mode=render", "--workdir=w", "--audio=a.wav", "--out=o.mp4")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "--mode is missing"),
        (("--mode=trian",), "did you mean train"),
        (("--mode=fit",), "needs --workdir"),
        (("--mode=fit", "--workdri=w"), "did you mean workdir"),
        (("--mode=fit", "--workdir"), "--workdir needs a value"),
        (("--mode=fit", "--workdir="), "empty"),
        (("--mode=fit", "--workdir=w", "--preload=dsik"), "did you mean disk"),
        (("--mode=synthetic", "--out=o", "--seconds=long"), "must be a number"),
        (("--mode=synthetic", "--out=o", "--seconds=nan"), "between"),
        (("--mode=synthetic", "--out=o", "--size=12.5"), "whole number"),
        (("--mode=synthetic", "--out=o", "--size=2"), "between 32"),
        (("--mode=synthetic", "--out=o", "--audio=a"), "does not use --audio"),
        (("--mode=eval", "--workdir=w", "--config.seed=3"), "does not use --config"),
        (("--mode=fit", "--workdir=w", "--config.seed"), "needs a value"),
        ((*RENDER, "--data_range=3"), "two whole numbers"),
        ((*RENDER, "--data_range", "3", "--watermark"), "two whole numbers"),
        ((*RENDER, "--fix_eye=2"), "between 0 and 1"),
        ((*RENDER, "--smooth_lips=perhaps"), "switch"),
        ((*RENDER, "stray"), "'stray' is no flag"),
        ((*RENDER, "--v=1"), "--v is no flag"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments, expected):
    with pytest.raises(UserError) as error:
        parse(*arguments)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_spellings_of_the_family_are_understood():
    o = parse(*RENDER, "--data_range", "0", "100", "--bg_img", "white", "--smooth_path", "--smooth-lips=yes")
    assert parse(*RENDER, "--data_range", "3,30", "--watermark").data_range == (3, 30)
    assert (o.data_range, o.background, o.smooth_path, o.smooth_lips) == ((0, 100), "white", True, True)
    assert parse("--mode=render", "--workspace=w", "--aud=a", "--out=o").workdir == "w"
    assert parse(*RENDER).smooth_lips is None and parse(*RENDER, "--nosmooth_lips").smooth_lips is False


def test_config_overrides_are_kept_in_order_in_both_spellings():
    o = parse("--mode=train", "--workdir=w", "--config=c.py:cpu", "--config.a.b=1", "--config.c", "x=y")
    assert o.config == "c.py:cpu" and o.overrides == [("a.b", "1"), ("c", "x=y")]


def test_every_mode_is_explained_with_an_example_and_every_flag_is_used():
    text = options.help_text()
    for name, mode in options.MODES.items():
        assert f"--mode={name}\n" in text and mode.example in text
        parts = mode.example.replace('"', "").split()
        assert parts[:2] == ["python", "launch.py"] and parse(*parts[2:]).mode == name
        assert set(mode.needs + mode.takes) <= set(options.FLAGS)
    used = {f for m in options.MODES.values() for f in m.needs + m.takes} | {"mode"}
    assert used == set(options.FLAGS) and set(options.ALIASES.values()) <= used


def test_help_ends_well_and_needs_no_jax():
    code = "import runpy, sys; sys.modules['jax'] = None; sys.argv = ['launch.py', '--help']; "
    code += "runpy.run_path('launch.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=config.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--mode=render" in done.stdout and done.stderr == ""
    assert "--mode=render" not in launch("--mode=eval", "--help").stdout


def one_line(done):
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in done.stderr
    return line


def test_wrong_flags_exit_with_two_and_one_line(tmp_path):
    done = launch("--mode=fit", "--workdri=x", cwd=tmp_path)
    assert "workdir" in one_line(done) and len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


MISTAKES = [
    (("--mode=fit", "--video=v.mp4", "--workdir=W"), "--consent"),
    (("--mode=fit", "--video=v.mp4", "--dataset=E", "--workdir=W", "--consent=me"), "exclude"),
    (
        ("--mode=fit", "--video=v.mp4", "--workdir=W", "--consent=me", "--config=configs/er_nerf.py:cpu"),
        "no file v.mp4",
    ),
    (("--mode=preprocess", "--video=v.mp4", "--workdir=W"), "no file v.mp4"),
    (("--mode=render", "--workdir=W", "--audio=a.wav", "--out=o.mp4"), "no folder W"),
    (("--mode=render", "--workdir=E", "--audio=a.wav", "--out=o.mp4"), "no file a.wav"),
    (("--mode=eval", "--workdir=E"), "holds no avatar"),
    (("--mode=train", "--workdir=E", "--config=configs/er_nerf.py:cpu"), "no dataset"),
    (("--mode=fit", "--dataset=D", "--workdir=E", "--config=configs/er_nerf.py:cpu"), "no folder D"),
    (("--mode=fit", "--dataset=E", "--workdir=W", "--config=configs/er_nerf.py:cpu"), "E holds no dataset"),
    (("--mode=fit", "--dataset=E", "--workdir=W", "--config=configs/er_nerf.py:cpv"), "did you mean cpu"),
    (("--mode=fit", "--dataset=E", "--workdir=W", "--config.train.fames=3"), "train.frames"),
    (("--mode=fit", "--dataset=E", "--workdir=W", "--config.system=er_nrf"), "er_nerf"),
    (("--mode=fit", "--dataset=E", "--workdir=W", "--crop=none"), "concerns --video"),
    (("--mode=synthetic", "--out=W", "--motion=9"), "between 0 and 3"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES)
def test_mistakes_that_only_the_modes_can_see_are_one_sentence_and_write_nothing(
    tmp_path, monkeypatch, arguments, expected
):
    from tkjax.app import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "E").mkdir()
    with pytest.raises(UserError) as error:
        cli.run(parse(*arguments))
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["E"]


@pytest.mark.heavy
def test_such_a_mistake_exits_with_two_and_one_line(tmp_path):
    done = launch("--mode=fit", "--video=v.mp4", "--workdir=W", cwd=tmp_path)
    assert "--consent" in one_line(done) and len(done.stderr.strip().splitlines()) == 1


def test_the_sound_to_speak_is_not_overwritten(tmp_path):
    from tkjax.app import cli

    (tmp_path / "a.mp4").write_bytes(b"sound")
    with pytest.raises(UserError, match="is the sound to speak"):
        out = f"--out={tmp_path / 'a.mp4'}"
        cli.run(parse("--mode=render", f"--workdir={tmp_path}", f"--audio={tmp_path}/./a.mp4", out))
    assert (tmp_path / "a.mp4").read_bytes() == b"sound"


def test_a_damaged_run_file_is_a_user_error(tmp_path):
    from tkjax.app import workdir

    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json"):
        workdir.read_facts(tmp_path)


def test_known_bad_releases_are_repaired_before_jax_starts_and_only_with_a_gpu_plugin(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_some=1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    monkeypatch.setattr(environment.importlib.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setattr(environment, "cuda_plugins", lambda: [])
    environment.prepare()
    assert environment.os.environ["XLA_FLAGS"] == "--xla_some=1"
    monkeypatch.setattr(environment, "cuda_plugins", lambda: ["jax-cuda13-plugin 0.10.2"])
    environment.prepare()
    environment.prepare()
    flags = environment.os.environ["XLA_FLAGS"]
    assert flags == "--xla_some=1 --xla_backend_extra_options=-nvptx-allow-ftz-atomics"
    assert environment.os.environ["JAX_COMPILATION_CACHE_DIR"] == "/mine"


@pytest.mark.heavy
def test_doctor_names_devices_versions_back_ends_and_models(tmp_path):
    done = launch("--mode=doctor", f"--models_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    for word in ("devices:", "jaxlib", "kernel back ends: ", "reference", "face_landmarker.task", "known-bad"):
        assert word in done.stdout


def test_json_of_a_run_merges_facts(tmp_path):
    from tkjax.app import workdir

    workdir.update_facts(tmp_path, a=1)
    workdir.update_facts(tmp_path, b=2)
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1, "b": 2}


def test_the_choices_of_flags_are_those_of_the_modules_behind_them():
    """`options` imports none of them, so that --help stays quick."""
    from tkjax.drive import scene
    from tkjax.media import paste_back
    from tkjax.render import map_pictures

    assert options.SCHEMES == paste_back.SCHEMES and options.MAPS == map_pictures.MAPS
    assert options.FLAGS["torso"].choices == scene.TORSOS


def test_a_clip_that_training_reduces_is_said_in_a_line():
    from tkjax.app import workflow

    assert workflow.reduced((512, 480), (512, 480)) == ""
    said = workflow.reduced((512, 480), (128, 120))
    assert "480x512 are reduced to 120x128" in said and "--config.data.size=512" in said
