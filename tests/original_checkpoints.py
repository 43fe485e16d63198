"""Checkpoints of RAD-NeRF and ER-NeRF built from the dossiers' lists of keys: what the originals would have written.

Shares nothing with tkjax.originals: names, shapes and order are written out here a second time.
"""

import numpy as np

OWN = ("individual_codes", "individual_codes_torso", "camera_dR", "camera_dT", "anchor_points")
BUFFERS = ("aabb_train", "aabb_infer", "density_grid", "density_bitfield", "density_grid_torso", "step_counter")
ANCHORS = ((0.01, 0.01, 0.1, 1.0), (-0.1, -0.1, 0.1, 1.0), (0.1, -0.1, 0.1, 1.0))
ENTRIES_3D = [4920, 13824, 32768] + 13 * [65536]
ENTRIES_2D = [296, 576, 1024, 1936, 3600, 6728, 12776, 24032, 45800] + 7 * [65536]
ENTRIES_PLANE = [4232, 6248, 9032, 13000] + 8 * [16384]


def _audio(audio: int, code: int) -> dict[str, tuple]:
    out = {}
    for i, (a, b) in enumerate([(audio, 32), (32, 32), (32, 64), (64, 64)]):
        out[f"audio_net.encoder_conv.{2 * i}"] = (b, a, 3)
    out["audio_net.encoder_fc1.0"] = (64, 64)
    out["audio_net.encoder_fc1.2"] = (code, 64)
    for i, (a, b) in enumerate([(code, 16), (16, 8), (8, 4), (4, 2), (2, 1)]):
        out[f"audio_att_net.attentionConvNet.{2 * i}"] = (b, a, 3)
    out["audio_att_net.attentionNet.0"] = (8, 8)
    return {k + end: (s if end == ".weight" else s[:1]) for k, s in out.items() for end in (".weight", ".bias")}


def _net(name: str, *widths: int) -> dict[str, tuple]:
    return {f"{name}.net.{i}.weight": (b, a) for i, (a, b) in enumerate(zip(widths[:-1], widths[1:]))}  # noqa: RUF007


def _grid(name: str, entries: list[int], features: int) -> dict[str, tuple]:
    return {f"{name}.embeddings": (sum(entries), features), f"{name}.offsets": (len(entries) + 1,)}


def shapes(system: str, audio: int = 29, torso=False, camera=False, rows: int = 10000, eye=True) -> dict[str, tuple]:
    """{key: shape} in the order of the file."""
    out = {"individual_codes": (rows, 4)}
    out |= {"individual_codes_torso": (rows, 8)} if torso else {}
    out |= {"camera_dR": (rows, 3), "camera_dT": (rows, 3)} if camera else {}
    out |= {"anchor_points": (3, 4)} if torso and system == "er_nerf" else {}
    out |= {"aabb_train": (6,), "aabb_infer": (6,), "density_grid": (1, 128**3), "density_bitfield": (262144,)}
    out |= {"density_grid_torso": (16384,)} if torso else {}
    out |= {"step_counter": (16, 2)}
    if system == "rad_nerf":
        out |= _audio(audio, 64) | _grid("encoder", ENTRIES_3D, 2) | _grid("encoder_ambient", ENTRIES_2D, 2)
        out |= _net("ambient_net", 96, 64, 64, 2) | _net("sigma_net", 64 + eye, 64, 64, 65)
        out |= _net("color_net", 84, 64, 3)
        if torso:
            out |= _net("torso_deform_net", 104, 64, 64, 2) | _grid("torso_encoder", ENTRIES_2D, 2)
            out |= _net("torso_net", 136, 32, 32, 4)
        return out
    out |= _audio(audio, 32)
    for plane in ("xy", "yz", "xz"):
        out |= _grid(f"encoder_{plane}", ENTRIES_PLANE, 1)
    out |= _net("eye_att_net", 36, 16, 1) if eye else {}
    out |= _net("sigma_net", 68 + eye, 64, 64, 65) | _net("color_net", 84, 64, 3)
    out |= _net("unc_net", 36, 32, 1) | _net("aud_ch_att_net", 36, 64, 32)
    if torso:
        out |= _net("torso_deform_net", 84, 32, 32, 2) | _grid("torso_encoder", ENTRIES_2D, 2)
        out |= _net("torso_net", 116, 32, 32, 4)
    return out


def is_parameter(key: str) -> bool:
    return key not in BUFFERS and not key.endswith(".offsets")


def is_torso(key: str) -> bool:
    return "torso" in key or key == "anchor_points"


def _offsets(key: str) -> np.ndarray:
    entries = (
        ENTRIES_3D
        if key.startswith("encoder.")
        else ENTRIES_PLANE
        if key[7:10] in ("_xy", "_yz", "_xz")
        else ENTRIES_2D
    )
    return np.cumsum([0, *entries]).astype(np.int32)


def _value(key: str, shape: tuple, rng: np.random.Generator) -> np.ndarray:
    if key.endswith(".offsets"):
        return _offsets(key)
    if key.endswith("embeddings"):
        return rng.uniform(-0.3, 0.3, shape).astype(np.float32)
    if key == "anchor_points":
        return (np.array(ANCHORS) + 0.02 * rng.standard_normal(shape)).astype(np.float32)
    if key in OWN:
        return (rng.standard_normal(shape) * (1e-3 if key.startswith("camera") else 0.1)).astype(np.float32)
    if key.startswith("aabb"):
        return np.array([-1, -0.5, -1, 1, 0.5, 1], np.float32)
    if key == "step_counter":
        return rng.integers(0, 99, shape).astype(np.int32)
    if key == "density_grid_torso":
        return np.where(rng.random(shape) < 0.7, rng.random(shape), 0).astype(np.float32)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 64
    value = rng.uniform(-1, 1, shape) * 1.5 / np.sqrt(fan_in)
    if key.startswith("audio_att"):
        value *= 4.0  # so that neighbouring frames weigh differently
    if key.startswith(("eye_att", "aud_ch", "unc_net")):
        value *= 2.0
    if key == "sigma_net.net.2.weight":
        value[0] = np.abs(value[0]) * 4  # hidden values are positive: densities of some tens
    return value.astype(np.float32)


def state_dict(system: str, seed: int = 0, **what) -> dict[str, np.ndarray]:
    """Random values of sensible scale. A third of the cells is occupied; density and bits agree."""
    rng = np.random.default_rng(seed)
    out = {
        k: _value(k, s, rng) for k, s in shapes(system, **what).items() if not k.startswith("density_") or "torso" in k
    }
    density = np.where(rng.random(128**3) < 0.35, rng.uniform(20, 60, 128**3), rng.choice([0.0, 0.5, -1.0], 128**3))
    density = in_pairs(density.astype(np.float32))
    bits = np.packbits(density > 10, bitorder="little")
    order = list(shapes(system, **what))
    out |= {"density_grid": density[None], "density_bitfield": bits}
    return {key: out[key] for key in order}


def in_pairs(density: np.ndarray) -> np.ndarray:
    """Densities in Morton order with the cells on both sides of the box's faces alike: rays begin on them, and rounding
    would choose the cell."""
    x, y, z = np.indices((128, 128, 128)).reshape(3, -1)
    code = sum(((v >> bit) & 1) << (3 * bit + axis) for bit in range(7) for axis, v in enumerate((x, y, z)))
    cube = density[code].reshape(128, 128, 128)
    cube[:, 32], cube[:, 96] = cube[:, 31], cube[:, 95]
    out = np.empty_like(density)
    out[code] = cube.reshape(-1)
    return out


def whole(model: dict[str, np.ndarray], kind: str = "rolling", seed: int = 1, frozen: bool = False) -> dict:
    """The file around a state dict, as nested dicts of arrays.

    rolling: `ngp_ep*.pth`, raw parameters, optimiser, moving average; best: `ngp.pth`, no density grid; bare: the state
    dict alone. frozen: the moving average lists the torso alone (torch_ema 0.2 after --head_ckpt).
    """
    if kind == "bare":
        return dict(model)
    stats = {"loss": [0.25, 0.125], "valid_loss": [], "results": [-31.5], "checkpoints": ["a.pth"], "best_result": None}
    top = {"epoch": 28, "global_step": 203616, "stats": stats, "mean_count": 812345, "mean_density": 13.4375}
    top |= {"mean_density_torso": 0.3125}
    if kind == "best":
        return {**top, "model": {k: v for k, v in model.items() if k != "density_grid"}}
    rng = np.random.default_rng(seed)
    names = [k for k in model if is_parameter(k) and (not frozen or is_torso(k))]
    shadow = [(model[k] + 0.01 * rng.standard_normal(model[k].shape)).astype(np.float32) for k in names]
    top["optimizer"] = {"state": {0: {"step": 3, "exp_avg": np.ones(3, np.float32)}}, "param_groups": [{"lr": 0.01}]}
    top["lr_scheduler"] = {"last_epoch": 3, "lr_lambdas": [None]}
    top["scaler"] = {"scale": 65536.0}
    top["ema"] = {"decay": 0.95, "num_updates": 20, "shadow_params": shadow, "collected_params": None}
    return {**top, "model": dict(model)}


def averaged(file: dict, frozen: bool = False) -> dict[str, np.ndarray]:
    """The state dict of a rolling file with its moving average in place."""
    names = [k for k in file["model"] if is_parameter(k) and (not frozen or is_torso(k))]
    return file["model"] | dict(zip(names, file["ema"]["shadow_params"]))


def tensors(tree):
    """Arrays as torch tensors, anywhere in nested dicts and lists."""
    import torch

    if isinstance(tree, dict):
        return {k: tensors(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [tensors(v) for v in tree]
    return torch.from_numpy(tree.copy()) if isinstance(tree, np.ndarray) else tree


def save(path, file: dict):
    import torch

    torch.save(tensors(file), path)
    return path
