"""AD-NeRF's head and body files: what they draw once imported, what they are after export, and what is refused.

Files are built here from the dossier's list of keys (§3, §10 "Weight import"), with smaller networks.
"""

import contextlib
import io
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import ad_nerf_oracle as literal
from tests import tiny
from tkjax.app import cli, options
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.host import torch_side
from tkjax.render.image import final_clock
from tkjax.signals import SOUND

torch = pytest.importorskip("torch")
from preprocess.weights import checkpoint_file  # noqa: E402

DEPTH, WIDTH, SKIP, VIEWS, AUDIO = (
    6,
    16,
    5,
    2,
    80,
)  # the skip lies behind layer 4, as there; log-mel of the tiny dataset
NETWORKS = ("network_fn_state_dict", "network_fine_state_dict", "network_audnet_state_dict")
ATTENTION = "network_audattnet_state_dict"


@pytest.fixture(autouse=True)
def files_without_a_child(monkeypatch):
    """Starting PyTorch takes seconds: single tests read and write in this process, the module fixture does not."""

    def ask(module, arguments):
        assert module == "preprocess.weights.checkpoint_file"
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = checkpoint_file.main(list(arguments))
        if code:
            raise UserError(errors.getvalue().strip().removeprefix("error: "))

    monkeypatch.setattr(torch_side, "ask", ask)


def run(mode: str, **flags) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.run(options.Options(mode, flags, []))
    return out.getvalue()


def layer(rng, *shape, gain=1.5):
    given = int(np.prod(shape[1:]))
    uniform = lambda s: torch.tensor(gain * rng.uniform(-1, 1, s) / np.sqrt(given), dtype=torch.float32)  # noqa: E731
    return {"weight": uniform(shape), "bias": uniform(shape[:1])}


def named(layers: dict) -> dict:
    return {f"{name}.{leaf}": value for name, parts in layers.items() for leaf, value in parts.items()}


def face(rng, inputs: int) -> dict:
    out = {}
    for i in range(DEPTH):
        given = inputs if i == 0 else WIDTH + inputs if i == SKIP else WIDTH
        out[f"pts_linears.{i}"] = layer(rng, WIDTH, given)
    for i in range(VIEWS):
        out[f"views_linears.{i}"] = layer(rng, WIDTH // 2, WIDTH + 27 if i == 0 else WIDTH // 2)
    out |= {"feature_linear": layer(rng, WIDTH, WIDTH), "alpha_linear": layer(rng, 1, WIDTH, gain=60.0)}
    return named(out | {"rgb_linear": layer(rng, 3, WIDTH // 2)})


def audio_net(rng) -> dict:
    widths = (AUDIO, 32, 32, 64, 64)
    out = {f"encoder_conv.{2 * i}": layer(rng, b, a, 3) for i, (a, b) in enumerate(itertools.pairwise(widths))}
    return named(out | {"encoder_fc1.0": layer(rng, 64, 64), "encoder_fc1.2": layer(rng, 64, 64)})


def attention_net(rng) -> dict:
    widths = (32, 16, 8, 4, 2, 1)
    out = {
        f"attentionConvNet.{2 * i}": layer(rng, b, a, 3, gain=3.0)
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    }
    return named(out | {"attentionNet.0": layer(rng, 8, 8, gain=4.0)})


def checkpoint(inputs: int, seed: int, step: int, attention: bool = True) -> dict:
    """What the original saves of the head (127 inputs) or of the body (169)."""
    rng = np.random.default_rng(seed)
    out = {
        "global_step": step,
        NETWORKS[0]: face(rng, inputs),
        NETWORKS[1]: face(rng, inputs),
        NETWORKS[2]: audio_net(rng),
    }
    adam = torch.optim.Adam([torch.nn.Parameter(v) for v in out[NETWORKS[0]].values()])
    out |= {"optimizer_state_dict": adam.state_dict()}
    return out | {ATTENTION: attention_net(rng)} if attention and inputs == 127 else out


def save(folder, name: str, file: dict):
    folder.mkdir(exist_ok=True, parents=True)
    torch.save(file, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subject")
    return tiny.make_dataset(folder / "dataset", n=22)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder as the torso's training leaves it: the head once more under the body's number, and older ones."""
    folder = tmp_path_factory.mktemp("logs") / "me_com"
    head, body = checkpoint(127, 1, 299_999), checkpoint(169, 2, 599_999)
    save(folder, "300000_head.tar", checkpoint(127, 3, 299_999))
    save(folder, "590000_body.tar", checkpoint(169, 4, 589_999))
    save(folder, "600000_head.tar", head)
    save(folder, "600000_body.tar", body)
    return folder, head, body


def ours(network: dict) -> dict:
    """A network in our layout, written out here a second time."""

    def stack(names):
        parts = [(network[f"{n}.weight"].numpy().T, network[f"{n}.bias"].numpy()) for n in names]
        return {f"{leaf}_{i}": p[k] for i, p in enumerate(parts) for k, leaf in enumerate(("kernel", "bias"))}

    return {
        "trunk": stack([f"pts_linears.{i}" for i in range(SKIP)]),
        "behind_skip": stack([f"pts_linears.{i}" for i in range(SKIP, DEPTH)]),
        "density": stack(["alpha_linear"]),
        "colour": stack([*(f"views_linears.{i}" for i in range(VIEWS)), "rgb_linear"]),
    }


def sound(head: dict) -> dict:
    def conv(part, key):
        return {
            "kernel": head[part][f"{key}.weight"].numpy().transpose(2, 1, 0),
            "bias": head[part][f"{key}.bias"].numpy(),
        }

    def dense(part, key):
        return {"kernel": head[part][f"{key}.weight"].numpy().T, "bias": head[part][f"{key}.bias"].numpy()}

    net = {f"convs_{i}": conv(NETWORKS[2], f"encoder_conv.{2 * i}") for i in range(4)}
    net |= {"fc1": dense(NETWORKS[2], "encoder_fc1.0"), "fc2": dense(NETWORKS[2], "encoder_fc1.2")}
    out = {"audio_net": net}
    if ATTENTION in head:
        attention = {f"convs_{i}": conv(ATTENTION, f"attentionConvNet.{2 * i}") for i in range(5)}
        out["audio_attention"] = attention | {"fc": dense(ATTENTION, "attentionNet.0")}
    return out


@pytest.fixture(scope="module")
def imported(files, subject, tmp_path_factory):
    """(workdir, what was said)"""
    workdir = tmp_path_factory.mktemp("imported")
    said = run("import", source=str(files[0]), workdir=str(workdir), dataset=str(subject))
    return workdir, said


@pytest.mark.heavy
def test_it_says_what_it_took(imported):
    workdir, said = imported
    assert "recognised: AD-NeRF, 600000_head.tar (step 299999) and 600000_body.tar (step 599999)" in said
    assert "not used of 600000_body.tar: feature_linear, network_audnet_state_dict, optimizer_state_dict" in said
    assert bundle.load(workdir / "avatar").stages == ("head", "torso")


@pytest.mark.heavy
def test_an_imported_avatar_draws_the_formula(imported, files, subject, tmp_path):
    """In float64: the head behind the torso, 64 + 128 samples; 2e-5 where the inverse CDF is well conditioned."""
    avatar = bundle.load(imported[0] / "avatar")
    model = avatar.model()
    variables = avatar.variables(model)
    clip = DatasetClip(subject, tmp_path)
    frame, rays = 5, 12
    batch = clip.frame_batch(frame, "plate", model.signals())
    picked = np.random.default_rng(0).choice(clip.height * clip.width, rays, replace=False)
    batch = jax.tree.map(jnp.asarray, batch)
    batch = batch.replace(
        pixels_px=batch.pixels_px[:, picked],
        background=batch.background[:, picked],
        image_hw=None,
        label=None,
        target=None,
    )
    render = jax.jit(lambda v, b: model.render(v, b, None, final_clock(1, "torso"), False))(variables, batch)
    got = np.asarray(render.rgb + (1 - render.alpha) * batch.background)[0]

    _, head, body = files
    poses = np.float64(clip.cam_to_world)
    depth = np.mean(np.einsum("ni,ni->n", poses[:, :3, 2], poses[:, :3, 3])) / 4  # of all frames
    span = np.float32(depth - 0.2), np.float32(depth + 0.4), 64, 128
    code = literal.audio_code(sound(head), np.asarray(batch.signals[SOUND])[0])
    signal = np.concatenate([code, literal.pose_signal(poses[frame])])
    nets = {
        k: {"coarse": ours(f[NETWORKS[0]]), "fine": ours(f[NETWORKS[1]])} for k, f in (("head", head), ("torso", body))
    }
    want, through = [], []
    for pixel, background in zip(np.float64(batch.pixels_px[0]), np.float64(batch.background[0])):
        ray = literal.ray(poses[frame], clip.intrinsics, pixel)
        behind = literal.volume(nets["head"], *ray, code, *span, background)[1]
        ray = literal.ray(poses[0], clip.intrinsics, pixel)
        front = literal.volume(nets["torso"], *ray, signal, *span, np.zeros(3))[1]
        want.append(front[2] * behind[0] + front[1])
        through.append((behind[2], front[2]))
    wrong = np.abs(got - want).max(-1)
    assert np.mean(wrong < 2e-5) >= 0.9 and wrong.max() < 1e-3, wrong
    assert 0.01 < np.mean(through) < 0.99  # neither air alone nor walls


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.heavy
def test_export_gives_the_files_back(imported, files, subject, tmp_path):
    workdir, (_, head, body) = imported[0], files
    run("export", workdir=str(workdir), out=str(tmp_path / "000001_head.tar"))
    for name, file in (("000001_head.tar", head), ("000001_body.tar", body)):
        back = torch.load(tmp_path / name, weights_only=True)
        assert back["global_step"] == file["global_step"]
        networks = [k for k in file if k.startswith("network_")]
        assert [k for k in back if k.startswith("network_")] == networks
        assert all(same(back[k], file[k]) for k in networks)
        parts = {"optimizer_state_dict": NETWORKS[:2], "optimizer_aud_state_dict": NETWORKS[2:]}
        for key, trained in parts.items():  # the original loads them into optimisers of these tensors
            weights = [torch.nn.Parameter(v) for part in trained for v in back[part].values()]
            torch.optim.Adam(weights).load_state_dict(back[key])
    again = tmp_path / "again"
    run("import", source=str(tmp_path), workdir=str(again), dataset=str(subject))
    first, second = (bundle.load(w / "avatar") for w in (workdir, again))
    a, b = (bundle.arrays_of(s.variables(s.model()).params) for s in (first, second))
    assert set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_an_export_without_the_import_has_what_the_original_wants(imported, files, tmp_path):
    workdir = imported[0]
    record = workdir / "import" / "import.json"
    text = record.read_text()
    record.write_text(json.dumps({**json.loads(text), "avatar": "another"}))
    try:
        run("export", workdir=str(workdir), out=str(tmp_path / "x_head.tar"))
    finally:
        record.write_text(text)
    for name, file in (("x_head.tar", files[1]), ("x_body.tar", files[2])):
        back = torch.load(tmp_path / name, weights_only=True)
        for part in (k for k in file if k.startswith("network_")):
            assert {k: v.shape for k, v in back[part].items()} == {k: v.shape for k, v in file[part].items()}
    assert torch.equal(back[NETWORKS[1]]["rgb_linear.weight"], files[2][NETWORKS[1]]["rgb_linear.weight"])


def test_a_head_alone_and_one_without_attention(files, subject, tmp_path):
    path = save(tmp_path / "a", "100000_head.tar", checkpoint(127, 5, 99_999, attention=False))
    said = run("import", source=str(path), workdir=str(tmp_path / "w"), dataset=str(subject))
    assert "missing: the attention" in said and "no body" in said
    avatar = bundle.load(tmp_path / "w" / "avatar")
    model = avatar.model()
    assert avatar.stages == ("head",) and not model.attends
    with pytest.raises(UserError, match=r"must be a file that ends with head\.tar"):
        run("export", workdir=str(tmp_path / "w"), out=str(tmp_path / "x.pth"))


def test_what_does_not_fit_is_refused_in_one_sentence(files, tmp_path):
    head, body = checkpoint(127, 6, 1), checkpoint(169, 7, 1)

    def refused(told, name="1_head.tar", source=None, others=()):
        folder = tmp_path / told.replace(" ", "_")[:20]
        path = save(folder, name, source) if source is not None else folder
        for other, file in others:
            save(folder, other, file)
        with pytest.raises(UserError, match=told) as error:
            run("import", source=str(path), workdir=str(tmp_path / "w"))
        assert "\n" not in str(error.value) and not (tmp_path / "w" / "avatar").exists()

    refused("no head.tar beside it", "1_body.tar", body)
    refused("holds a body, expected the networks of a head", source=body)
    refused("expected 127 inputs", source={**head, NETWORKS[0]: face(np.random.default_rng(0), 130)})
    refused(
        "lacks 1 tensors",
        source={**head, NETWORKS[1]: {k: v for k, v in head[NETWORKS[1]].items() if k != "rgb_linear.bias"}},
    )
    broken = {**head[NETWORKS[0]], "alpha_linear.bias": torch.tensor([np.nan])}
    refused("numbers that are not finite", source={**head, NETWORKS[0]: broken})
    refused("holds a head, expected the networks of a body", "2_body.tar", head, [("2_head.tar", head)])
    refused("of ER-NeRF|no checkpoint|first layer", source={"model": {"a": torch.zeros(2)}})
    with pytest.raises(UserError, match="moving average"):
        run("import", source=str(files[0]), workdir=str(tmp_path / "w"), weights="ema")
