"""`python -m benchmarks.ops`: see `benchmarks.ops.bench`."""

import sys

from benchmarks.ops import bench

if __name__ == "__main__":
    sys.exit(bench.main())
