"""LPIPS weights for `tkjax.perceptual`, from the two files that its users have:

`python -m preprocess.weights.convert_lpips --trunk=alexnet-owt-7be5be79.pth --linear=alex.pth --out=lpips_alex.npz`

--trunk is torchvision's state dict of AlexNet or VGG16 (features.<k>.weight and .bias; the classifier is not used),
--linear the LPIPS file of the same network, version 0.1 (lin<k>.model.1.weight [1,C,1,1]). The network is recognised
by the trunk's keys. X.npz: conv<k>_weight [out,in,side,side], conv<k>_bias, linear<k> [C], float32, and the sha256 of
both sources. Put it into the folder of --models_dir or $TKJAX_MODELS, or into ~/.cache/tkjax.
"""

import argparse
import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import torch

from preprocess.command import exit_code
from tkjax.errors import UserError
from tkjax.host.files import write_atomic

# torchvision's number of each convolution in `features`, its channels and side; * marks those that LPIPS compares
_ALEX = "0:3:64:11* 3:64:192:5* 6:192:384:3* 8:384:256:3* 10:256:256:3*"
_VGG = (
    "0:3:64:3 2:64:64:3* 5:64:128:3 7:128:128:3* 10:128:256:3 12:256:256:3 14:256:256:3* 17:256:512:3 19:512:512:3 "
    "21:512:512:3* 24:512:512:3 26:512:512:3 28:512:512:3*"
)


def _convs(text: str) -> list[tuple[int, int, int, int, bool]]:
    return [(*(int(v) for v in c.rstrip("*").split(":")), c.endswith("*")) for c in text.split()]


NETWORKS = {"alex": _convs(_ALEX), "vgg": _convs(_VGG)}
TITLES = {"alex": "AlexNet", "vgg": "VGG16"}


def read_state(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, no pickled code run; UserError where the file holds anything else."""
    if not path.is_file():
        raise UserError(f"{what}: there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
        ):
            raise ValueError("it holds no state dict")
    except Exception as e:  # the unpickler raises whatever a foreign file makes it stumble over
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:120]}".rstrip(".")
        raise UserError(f"{what}: {path} cannot be read as weights ({reason})") from e
    return {k.removeprefix("module."): v for k, v in state.items()}


def _take(state: dict[str, torch.Tensor], key: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    if key not in state:
        raise UserError(f"{where} lacks {key!r}")
    value = state[key].to(torch.float32).numpy()
    if value.shape != shape:
        raise UserError(f"{where}: {key!r} has shape {value.shape}, expected {shape}")
    if not np.isfinite(value).all():
        raise UserError(f"{where}: {key!r} holds NaN or infinity; the file is damaged")
    return value


def recognise(state: dict[str, torch.Tensor], path: Path) -> str:
    """alex or vgg, by the numbers of the convolutions."""
    found = {int(k.split(".")[1]) for k in state if k.startswith("features.") and k.split(".")[1].isdigit()}
    for name, convs in NETWORKS.items():
        if found == {c[0] for c in convs}:
            return name
    raise UserError(f"--trunk: {path} is neither torchvision's AlexNet nor its VGG16; give one of their weight files")


def convert(trunk: Path, linear: Path) -> tuple[str, dict[str, np.ndarray]]:
    """(alex or vgg, the members of lpips_<name>.npz)."""
    features = read_state(trunk, "--trunk")
    name = recognise(features, trunk)
    lines = read_state(linear, "--linear")
    out = {}
    compared = []
    for k, (number, n_in, n_out, side, is_compared) in enumerate(NETWORKS[name]):
        shape = (n_out, n_in, side, side)
        out[f"conv{k}_weight"] = _take(features, f"features.{number}.weight", shape, f"--trunk: {trunk}")
        out[f"conv{k}_bias"] = _take(features, f"features.{number}.bias", (n_out,), f"--trunk: {trunk}")
        compared += [n_out] if is_compared else []
    where = f"--linear: {linear} does not belong to {TITLES[name]}, the network of --trunk: it"
    for k, channels in enumerate(compared):
        value = _take(lines, f"lin{k}.model.1.weight", (1, channels, 1, 1), where)
        out[f"linear{k}"] = value.reshape(-1)
    for key, path in (("trunk_sha256", trunk), ("linear_sha256", linear)):
        out[key] = np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), np.uint8)
    return name, out


def main(argv: list[str] | None = None) -> int:
    """Command line; 0, or 2 with one sentence on standard error."""
    parser = argparse.ArgumentParser("preprocess.weights.convert_lpips", description="LPIPS weights for tkjax.")
    parser.add_argument("--trunk", required=True, type=Path, help="torchvision's AlexNet or VGG16 weights (.pth)")
    parser.add_argument("--linear", required=True, type=Path, help="LPIPS' alex.pth or vgg.pth, version 0.1")
    parser.add_argument("--out", required=True, type=Path, help="lpips_alex.npz or lpips_vgg.npz")
    args = parser.parse_args(argv)

    def work() -> None:
        name, arrays = convert(args.trunk, args.linear)
        if args.out.name != f"lpips_{name}.npz":
            raise UserError(
                f"--out={args.out}: --trunk holds {TITLES[name]}, so name the file lpips_{name}.npz: it is looked for "
                "by that name"
            )
        data = io.BytesIO()
        np.savez(data, **arrays)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, data.getvalue())
        print(f"{args.out}: LPIPS on {TITLES[name]}; put it into the folder of --models_dir or $TKJAX_MODELS")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
