"""The C++ rasteriser beside a plain scan-line loop: one thread each, the same flags, the same mesh.

python benchmarks/raster_plain.py [--isa avx512|avx2|generic] [--size 448] [--side 158]     2 side² faces
"""

import argparse
import importlib.util
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _setup():
    """setup.py as a module: its compiler, flags and instruction sets."""
    spec = importlib.util.spec_from_file_location("kernels_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(isa: str, side: int, size: int, rounds: int) -> str:
    """What the program prints. OSError or CalledProcessError where it does not compile or run."""
    setup, kernels = _setup(), ROOT / "tkjax/ops/cpu/src"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "raster_plain"
        includes = [f"-I{kernels}", f"-I{ROOT / 'tests/ops/cpp'}", "-include", "one_isa.h"]
        sources = [str(ROOT / "benchmarks/cpp/raster_plain.cc"), str(kernels / "rasterize.cc")]
        command = [*setup.compiler(), *setup.FLAGS, *setup.ISAS[isa], f"-DTKJAX_ISA={isa}", *includes, *sources]
        subprocess.run([*command, "-o", str(program)], check=True, capture_output=True)
        done = subprocess.run([program, *map(str, (side, size, rounds))], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--isa", default="avx2", choices=("generic", "avx2", "avx512"))
    parser.add_argument("--size", type=int, default=448, help="pixels along a side")
    parser.add_argument("--side", type=int, default=158, help="2 side² faces")
    parser.add_argument("--rounds", type=int, default=101, help="the median of so many")
    args = parser.parse_args()
    print(f"{args.isa}: {run(args.isa, args.side, args.size, args.rounds)}")


if __name__ == "__main__":
    main()
