"""A checkpoint of an original as plain arrays, and back: the only place where a `.pth` or `.tar` of theirs is opened.

`python -m preprocess.weights.checkpoint_file --read X.pth --out FOLDER`
`python -m preprocess.weights.checkpoint_file --write FOLDER --out X.pth`

FOLDER/tensors.npz holds `model/<key>` for every tensor of the state dict and `ema/<i>` for the i-th of the moving
average's nameless `shadow_params` (rad-nerf dossier §3.5, er-nerf §3 "State-dict keys"). FOLDER/facts.json holds
  keys     names of the state dict, in its order         dtypes   {name in tensors.npz: dtype of the file's tensor}
  top      epoch, global_step, stats, mean_count, mean_density, mean_density_torso, as far as the file has them
  ema      null, or {decay, num_updates, length}         left_out names of the file's other entries (optimizer, ...)
  bare     whether the file is a state dict alone, without these entries around it

A file of AD-NeRF (`*_head.tar`, `*_body.tar`) holds a state dict for each of its networks; here the name of each stands
before its keys, `network_fn_state_dict.pts_linears.0.weight`, and what is written has the optimisers that it expects.

Files are read with `weights_only`: tensors, containers, numbers and numpy's own numbers (the originals' `stats` hold
metrics as such); anything else in a file is refused, because to unpickle it is to run it. A file may claim what it does
not hold, so names, sizes and kinds of numbers are looked at before anything is made of them.
"""

import argparse
import json
import re
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from preprocess.command import exit_code
from preprocess.workers import native
from tkjax.contract.npz import write_npz
from tkjax.errors import UserError
from tkjax.host import files
from tkjax.host.files import write_atomic

try:
    with native("torch"):
        import torch
except UserError as error:  # said when it is needed
    torch, LACKING = None, error

TOP = ("epoch", "global_step", "stats", "mean_count", "mean_density", "mean_density_torso")
LARGEST = 2**33  # bytes; a checkpoint with its optimiser has 50 MB
GROWTH, SLACK = 4, 2**26  # tensors may take so many times the file's bytes, and so many more: shared or expanded ones
LONGEST_NAME = 256  # characters of a tensor's name; the originals' longest has 41
DEEPEST, MOST = 32, 10**5  # levels and entries of `stats` and the like
DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
BROKEN_ZIP = (
    zipfile.BadZipFile, ValueError, OSError, EOFError, IndexError, NotImplementedError, RuntimeError, struct.error,
    zlib.error,
)  # fmt: skip
OTHERS = {
    "pytorch-lightning_version": "PyTorch Lightning",
    "hyper_parameters": "PyTorch Lightning",
}


def _shown(name) -> str:
    """A name out of a file, for a sentence: on one line, in characters that every terminal can show."""
    text = name[:80] if isinstance(name, str) else type(name).__name__
    return "".join(c if c.isprintable() else "?" for c in text) + ("…" if isinstance(name, str) and name[80:] else "")


class _Plain:
    """Values as json can hold them: numbers, text, containers; tensors of one number; the rest as text."""

    def __init__(self, where: str):
        self.where, self.count = where, 0

    def __call__(self, value, depth: int = 0):
        self.count += 1
        if depth > DEEPEST or self.count > MOST:
            raise UserError(
                f"{self.where} is nested more than {DEEPEST} levels deep or has more than {MOST} entries, expected "
                "numbers and lists of numbers; save the file again without it"
            )
        if isinstance(value, Mapping):
            return {self._text(k): self(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self(v, depth + 1) for v in value]
        if isinstance(value, torch.Tensor):
            one = not value.is_meta and value.layout == torch.strided and value.numel() == 1
            value = value.item() if one else f"tensor {str(value.dtype).removeprefix('torch.')}"
        value = value.item() if isinstance(value, np.generic) else value
        short = isinstance(value, int) and value.bit_length() < 64
        return value if value is None or short or isinstance(value, float) else self._text(value)

    @staticmethod
    def _text(value) -> str:
        if isinstance(value, int) and value.bit_length() >= 64:
            return f"whole number of {value.bit_length()} bits"
        text = value if isinstance(value, str | int | float | complex) else type(value).__name__
        return str(text)[:1000].encode(errors="replace").decode()


def _check_archive(path: Path) -> None:
    """UserError for a zip whose members are not what its directory says. PyTorch compares no checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
                raise UserError(f"{path} holds compressed or encrypted members, which torch.save does not write")
            if len({m.filename for m in members}) < len(members):
                raise UserError(f"{path} holds two members of one name, which torch.save does not write")
            damaged = archive.testzip()
    except UserError:
        raise
    except BROKEN_ZIP as error:
        raise UserError(f"{path} is damaged: its zip cannot be read ({type(error).__name__}); copy it again") from error
    if damaged is not None:
        raise UserError(f"{path} is damaged: {_shown(damaged)} in it fails its checksum (CRC-32); copy it again")


def _check_tensors(tensors: Mapping[str, "torch.Tensor"], path: Path) -> None:
    """UserError for tensors that arrays cannot be made of, before any is made."""
    room = GROWTH * path.stat().st_size + SLACK
    for name, value in tensors.items():
        key, dtype = name.removeprefix("model/"), str(value.dtype).removeprefix("torch.")
        shown = f"{path}: {_shown(key)}"
        if not 0 < len(key) <= LONGEST_NAME or not key.isprintable():
            raise UserError(f"{shown} is no name of a tensor, expected 1 to {LONGEST_NAME} printable characters")
        if value.is_meta or value.is_nested or value.is_quantized or value.layout != torch.strided:
            raise UserError(
                f"{shown} is a tensor without plain numbers (sparse, quantised, nested or on 'meta'); save the file "
                "again with dense tensors on the CPU"
            )
        if dtype not in DTYPES:
            raise UserError(f"{shown} holds {dtype} numbers, which are no weights; save it as float32")
        room -= value.numel() * max(value.element_size(), 4 if dtype == "bfloat16" else 1)
        if room < 0:
            raise UserError(
                f"{shown} has the shape {list(value.shape)}, more numbers than a file of {path.stat().st_size} bytes "
                "holds; save it again with tensors that have their own numbers (tensor.clone())"
            )


def _load(path: Path):
    """The file's object, without running anything that it holds."""
    if not path.is_file():
        raise UserError(f"--source: there is no file {path}")
    if not 0 < path.stat().st_size <= LARGEST:
        raise UserError(f"{path} has {path.stat().st_size} bytes and is no checkpoint; give a .pth of the originals")
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":  # as PyTorch tells them; older files are streams of pickles
            _check_archive(path)
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
                f"{path} holds more than numbers ({_shown(foreign[1])}), and reading that could run a stranger's code; "
                "save it again as a plain state dict: torch.save({'model': net.state_dict()}, path)"
            ) from error
        raise UserError(f"{path} is not readable as a PyTorch checkpoint ({type(error).__name__})") from error


NETWORKS = (
    "network_fn_state_dict",
    "network_fine_state_dict",
    "network_audnet_state_dict",
    "network_audattnet_state_dict",
)
OPTIMISERS = {  # of AD-NeRF, by the networks that each trains (dossier §5)
    "optimizer_state_dict": NETWORKS[:2],
    "optimizer_aud_state_dict": NETWORKS[2:3],
    "optimizer_audatt_state_dict": NETWORKS[3:],
}


def _networks(loaded: Mapping, path: Path) -> dict:
    """The state dicts of AD-NeRF's networks as one."""
    out = {}
    for name in NETWORKS:
        part = loaded.get(name)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            raise UserError(f"{path}: its {name!r} is no state dict")
        for key, value in part.items():
            if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
                raise UserError(f"{path}: {_shown(key)!r} in its {name!r} is no tensor with a name")
            out[f"{name}.{key}"] = value
    return out


def _apart(model: Mapping) -> dict:
    """The inverse of `_networks`, each network with a fresh optimiser as the original wants to load it."""
    out = {name: OrderedDict() for name in NETWORKS if any(k.startswith(f"{name}.") for k in model)}
    for key, value in model.items():
        name, own = key.split(".", 1)
        out[name][own] = value
    for name, trained in OPTIMISERS.items():
        tensors = [torch.nn.Parameter(v) for part in trained for v in out.get(part, {}).values()]
        if tensors:
            out[name] = torch.optim.Adam(tensors, lr=5e-4, betas=(0.9, 0.999)).state_dict()
    return out


def _parts(loaded, path: Path) -> tuple[dict, dict, bool]:
    """(state dict, the entries around it, whether there are none); UserError where the file holds something else."""
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not the parameters of a network")
    for key, name in OTHERS.items():
        if key in loaded:
            raise UserError(f"{path} is a checkpoint of {name} ({key!r} is in it); RAD-NeRF and ER-NeRF can be read")
    if NETWORKS[0] in loaded:
        return _networks(loaded, path), {k: v for k, v in loaded.items() if k not in NETWORKS}, False
    bare = bool(loaded) and all(isinstance(v, torch.Tensor) for v in loaded.values())
    model = loaded if bare else loaded.get("model")
    if not isinstance(model, Mapping) or not model:
        names = ", ".join(_shown(k) for k in list(loaded)[:6]) or "nothing"
        raise UserError(f"{path} is no checkpoint of RAD-NeRF or ER-NeRF: it has no 'model' (it holds {names})")
    strange = [k for k, v in model.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if strange:
        raise UserError(f"{path}: {_shown(strange[0])!r} in its 'model' is no tensor with a name")
    return dict(model), {} if bare else dict(loaded), bare


def _array(tensor) -> np.ndarray:
    """As numpy; bfloat16, which numpy does not have, as float32."""
    tensor = tensor.detach().to("cpu").resolve_neg()
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
    _check_tensors(tensors, path)
    left_out = sorted(_shown(k) for k in around if k not in (*TOP, "model") and not (k == "ema" and shadow))
    average = None
    if shadow is not None:
        plain = _Plain(f"{path}: its moving average ('ema')")
        average = {k: plain(ema.get(k)) for k in ("decay", "num_updates")} | {"length": len(shadow)}
    facts = {
        "keys": list(model),
        "dtypes": {name: str(v.dtype).removeprefix("torch.") for name, v in tensors.items()},
        "top": {k: _Plain(f"{path}: its {k!r}")(around[k]) for k in TOP if k in around},
        "ema": average,
        "left_out": left_out,
        "bare": bare,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with files.whole(folder / "tensors.npz") as part, part.open("wb") as file:
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
        whole_file |= _apart(model) if any(k.startswith(f"{NETWORKS[0]}.") for k in model) else {"model": model}
    with files.whole(path) as part, part.open("wb") as file:  # a file, since torch would store the temporary name
        torch.save(whole_file, file)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0, or 2 with one sentence on standard error."""
    parser = argparse.ArgumentParser("checkpoint_file", description="A .pth as plain arrays, and back.")
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
