"""A checkpoint of RAD-NeRF or ER-NeRF as plain arrays, and back: the only place where a `.pth` is opened.

`python -m preprocess.checkpoint_file --read X.pth --out FOLDER`
`python -m preprocess.checkpoint_file --write FOLDER --out X.pth`

FOLDER/tensors.npz holds `model/<key>` for every tensor of the state dict and `ema/<i>` for the i-th of the moving
average's nameless `shadow_params` (rad-nerf dossier §3.5, er-nerf §3 "State-dict keys"). FOLDER/facts.json holds
  keys     names of the state dict, in its order         dtypes   {name in tensors.npz: dtype of the file's tensor}
  top      epoch, global_step, stats, mean_count, mean_density, mean_density_torso, as far as the file has them
  ema      null, or {decay, num_updates, length}         left_out names of the file's other entries (optimizer, ...)
  bare     whether the file is a state dict alone, without these entries around it

Files are read with `weights_only`: tensors, containers, numbers and numpy's own numbers (the originals' `stats` hold
metrics as such); anything else in a file is refused, because to unpickle it is to run it.
"""

import argparse
import json
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from preprocess.command import exit_code
from preprocess.workers import native
from tkjax.contract.npz import write_npz
from tkjax.errors import UserError
from tkjax.files import whole, write_atomic

try:
    with native("torch"):
        import torch
except UserError as error:  # said when it is needed
    torch, LACKING = None, error

TOP = ("epoch", "global_step", "stats", "mean_count", "mean_density", "mean_density_torso")
LARGEST = 2**33  # bytes; a checkpoint with its optimiser has 50 MB
OTHERS = {
    "network_fn_state_dict": "AD-NeRF",
    "pytorch-lightning_version": "PyTorch Lightning",
    "hyper_parameters": "PyTorch Lightning",
}


def _scalar(value):
    """What json can hold of a value: numbers, text, containers; tensors of one number; the rest as text."""
    if isinstance(value, Mapping):
        return {str(k): _scalar(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_scalar(v) for v in value]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)[:200]


def _load(path: Path):
    """The file's object, without running anything that it holds."""
    if not path.is_file():
        raise UserError(f"--source: there is no file {path}")
    if not 0 < path.stat().st_size <= LARGEST:
        raise UserError(f"{path} has {path.stat().st_size} bytes and is no checkpoint; give a .pth of the originals")
    scalar = np._core.multiarray.scalar
    numbers = [type(np.dtype(t)) for t in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
    safe = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *numbers]
    try:
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            raise UserError(
                f"{path} holds more than numbers ({foreign[1]}), and reading that could run a stranger's code; save it "
                "again as a plain state dict: torch.save({'model': net.state_dict()}, path)"
            ) from error
        raise UserError(f"{path} is not readable as a PyTorch checkpoint ({type(error).__name__})") from error


def _parts(loaded, path: Path) -> tuple[dict, dict, bool]:
    """(state dict, the entries around it, whether there are none); UserError where the file holds something else."""
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not the parameters of a network")
    for key, name in OTHERS.items():
        if key in loaded:
            raise UserError(f"{path} is a checkpoint of {name} ({key!r} is in it); RAD-NeRF and ER-NeRF can be read")
    bare = bool(loaded) and all(isinstance(v, torch.Tensor) for v in loaded.values())
    model = loaded if bare else loaded.get("model")
    if not isinstance(model, Mapping) or not model:
        names = ", ".join(str(k)[:40] for k in list(loaded)[:6]) or "nothing"
        raise UserError(f"{path} is no checkpoint of RAD-NeRF or ER-NeRF: it has no 'model' (it holds {names})")
    strange = [k for k, v in model.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if strange:
        raise UserError(f"{path}: {strange[0]!r} in its 'model' is no tensor with a name")
    return dict(model), {} if bare else dict(loaded), bare


def _array(tensor) -> np.ndarray:
    """As numpy; bfloat16, which numpy does not have, as float32."""
    if tensor.is_sparse or tensor.is_quantized:
        raise UserError("sparse and quantised tensors cannot be read")
    tensor = tensor.detach().to("cpu")
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()


def read(path: Path, folder: Path) -> None:
    """X.pth -> FOLDER/tensors.npz and facts.json."""
    model, around, bare = _parts(_load(path), path)
    tensors = {f"model/{k}": v for k, v in model.items()}
    ema, shadow = around.get("ema"), None
    if isinstance(ema, Mapping) and isinstance(ema.get("shadow_params"), list | tuple):
        shadow = list(ema["shadow_params"])
        if not all(isinstance(v, torch.Tensor) for v in shadow):
            raise UserError(f"{path}: its moving average ('ema') holds something else than tensors")
        tensors |= {f"ema/{i}": v for i, v in enumerate(shadow)}
    left_out = sorted(str(k) for k in around if k not in (*TOP, "model") and not (k == "ema" and shadow))
    average = None
    if shadow is not None:
        average = {k: _scalar(ema.get(k)) for k in ("decay", "num_updates")} | {"length": len(shadow)}
    facts = {
        "keys": list(model),
        "dtypes": {name: str(v.dtype).removeprefix("torch.") for name, v in tensors.items()},
        "top": {k: _scalar(around[k]) for k in TOP if k in around},
        "ema": average,
        "left_out": left_out,
        "bare": bare,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "tensors.npz") as part, part.open("wb") as file:
        write_npz(file, {name: _array(v) for name, v in tensors.items()})
    write_atomic(folder / "facts.json", json.dumps(facts, indent=1) + "\n")


def write(folder: Path, path: Path) -> None:
    """FOLDER -> X.pth with the layout of the originals, whole or not at all."""
    facts = json.loads((folder / "facts.json").read_text())
    with np.load(folder / "tensors.npz", allow_pickle=False) as data:
        tensors = {n: torch.from_numpy(data[n]).to(getattr(torch, facts["dtypes"][n])) for n in data.files}
    model = OrderedDict((k, tensors[f"model/{k}"]) for k in facts["keys"])
    whole_file = model if facts["bare"] else {**facts["top"]}
    if not facts["bare"]:
        if facts["ema"] is not None:
            ema = {k: facts["ema"][k] for k in ("decay", "num_updates")}
            ema["shadow_params"] = [tensors[f"ema/{i}"] for i in range(facts["ema"]["length"])]
            whole_file["ema"] = {**ema, "collected_params": None}
        whole_file["model"] = model
    with whole(path) as part, part.open("wb") as file:  # a file, since torch would store the temporary name
        torch.save(whole_file, file)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0, or 2 with one sentence on standard error."""
    parser = argparse.ArgumentParser("preprocess.checkpoint_file", description="A .pth as plain arrays, and back.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--read", type=Path, help="the .pth to read into the folder --out")
    what.add_argument("--write", type=Path, help="the folder to write as the .pth --out")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)

    def work() -> None:
        if torch is None:
            raise LACKING
        if args.read:
            read(args.read, args.out)
        else:
            write(args.write, args.out)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
