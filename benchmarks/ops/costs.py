"""How much work an op is, by formula: what the benchmark's shares of the ceilings are taken from.

FLOP are the multiplications and additions of the definition, one each; an exp, a root or a division counts one. What
a kernel computes again, or computes for padding, is not counted, so that a share is useful work only.
Bytes are those that must move once: every input read once, every output written once, and of a table no more than the
gathers touch. Gathers are table rows read (forward) or added to (backward).
Backward is the work of the VJP with residuals given; forward+backward is the sum of both.
"""

import itertools
from typing import NamedTuple

Number = int | float


class Cost(NamedTuple):
    flop: Number
    bytes: Number
    gathers: Number = 0

    def __add__(self, other):
        return Cost(self.flop + other.flop, self.bytes + other.bytes, self.gathers + other.gathers)


def both(forward: Cost, backward: Cost | None) -> dict[str, Cost]:
    """Per mode."""
    if backward is None:
        return {"forward": forward}
    return {"forward": forward, "backward": backward, "forward+backward": forward + backward}


def grid_encode(points: int, planes: int, spec, *, to_points: bool = False, out_bytes: int = 4) -> dict[str, Cost]:
    """Per point, plane and level: position and cell 4 D, weights 2^D (D-1), and 2 F per corner to sum (forward) or to
    add into the table (backward). The gradient to a point: 2 F + 2 D more per corner."""
    corners, levels = 2**spec.dims, points * planes * spec.levels
    base = 4 * spec.dims + corners * (spec.dims - 1)
    gathers = levels * corners
    tables = min(planes * spec.entries, gathers) * spec.features * 4
    coordinates = points * planes * spec.dims * 4
    out = levels * spec.features * out_bytes
    forward = Cost(levels * (base + corners * 2 * spec.features), coordinates + out + tables, gathers)
    backward = Cost(forward.flop, coordinates + out + planes * spec.entries * spec.features * 4, gathers)
    if to_points:
        extra = levels * corners * (2 * spec.features + 2 * spec.dims)
        backward += Cost(extra, coordinates + tables, gathers)
    return both(forward, backward)


def mlp_macs(widths) -> int:
    return sum(a * b for a, b in itertools.pairwise(widths))


def field_mlp(samples: int, widths) -> dict[str, Cost]:
    """2 per weight and sample forward; 4 backward (to the inputs and to the weights)."""
    macs = mlp_macs(widths)
    forward = Cost(2 * samples * macs, 4 * (samples * (widths[0] + widths[-1]) + macs))
    backward = Cost(4 * samples * macs, 4 * (samples * (2 * widths[0] + widths[-1]) + 2 * macs))
    return both(forward, backward)


def field(samples: int, channels: int, mlps, rows_bytes: int, spec=None, planes: int = 1, *more) -> dict[str, Cost]:
    """The MLPs only: 2 per weight and sample forward (46.4 kFLOP for an ER-NeRF sample), 4 backward. Encoding and
    activations come on top and are not counted, as in the dossier. spec: of a grid, where there is one; more: further
    ones, as (spec, planes)."""
    macs = sum(mlp_macs(widths) for widths in mlps)
    moved = samples * 4 * (3 + channels + 1) + rows_bytes + 4 * macs
    forward, backward = Cost(2 * samples * macs, moved), Cost(4 * samples * macs, moved + 4 * macs)
    for grid, count in () if spec is None else ((spec, planes), *more):
        gathers, values = samples * count * grid.levels * 2**grid.dims, count * grid.entries * grid.features
        forward += Cost(0, min(values, gathers * grid.features) * 4, gathers)
        backward += Cost(0, 2 * values * 4, gathers)
    return both(forward, backward)


def march(rays: int, points: Number, occupancy_bytes: int, out_bytes: int) -> dict[str, Cost]:
    """20 per lattice point up to where a ray is full or outside: 2 for t, 6 for the position, 12 for the cell."""
    return both(Cost(20.0 * points, rays * 28 + occupancy_bytes + out_bytes), None)


def composite(slots: int, live: int, rays: int, weighted: int, plain: int, slot_bytes: int) -> dict[str, Cost]:
    """Per live sample: 8 for alpha, transmittance, weight and depth, 2 per weighted channel, 1 per plain one; the
    gradient 8, and 5 and 1. `slot_bytes` is what a slot holds besides its channels."""
    channels = 4 * (weighted + plain)
    out = rays * (channels + 8)
    forward = Cost(live * (8 + 2 * weighted + plain), slots * (slot_bytes + channels) + out)
    backward = Cost(live * (8 + 5 * weighted + plain), slots * (slot_bytes + 2 * channels + 4) + out)
    return both(forward, backward)


def render_fused(samples: int, rays: int, mlps, occupancy_bytes: int, params_bytes: int) -> dict[str, Cost]:
    """The MLPs of the samples that an early stop leaves; bytes: rays and pictures, grid and weights once."""
    flop = 2.0 * samples * sum(mlp_macs(widths) for widths in mlps)
    return both(Cost(flop, rays * (24 + 64 + 20) + occupancy_bytes + params_bytes), None)


def blend_tables(frames: int, tables: int, read: int, terms: int, numbers: int) -> dict[str, Cost]:
    """2 per coefficient that is not 0 (`terms` of all frames) and number of a table, each way; `read` tables have one
    in some frame. Backward: to the tables only, all of which are written."""
    flop = 2.0 * terms * numbers
    forward = Cost(flop, 4 * (numbers * (read + frames) + frames * tables))
    return both(forward, Cost(flop, 4 * (numbers * (tables + frames) + frames * tables)))


def rasterize(vertices: int, faces: int, pixels: int, covered: int) -> dict[str, Cost]:
    """30 per vertex and face to place it, 45 per covered pixel: edges 24, division 1, coordinates and depth 20; the
    gradient 60 per covered pixel. Hidden faces and pixels beside a face are not counted."""
    mesh = 16 * vertices + 12 * faces
    forward = Cost(30 * (vertices + faces) + 45 * covered, mesh + 16 * pixels)
    return both(forward, Cost(60 * covered, mesh + 12 * pixels + 16 * vertices, 9 * covered))


def interpolate(vertices: int, faces: int, pixels: int, covered: int, channels: int) -> dict[str, Cost]:
    """5 per covered pixel and channel; the gradient 10."""
    read = 4 * vertices * channels + 12 * faces + 12 * pixels
    forward = Cost(5 * covered * channels, read + 4 * pixels * channels, 3 * covered)
    backward = Cost(10 * covered * channels, read + 4 * (pixels + vertices) * channels + 8 * pixels, 3 * covered)
    return both(forward, backward)


def antialias(vertices: int, faces: int, pixels: int, pairs: int, channels: int) -> dict[str, Cost]:
    """60 per face for its silhouettes, 40 per pair of pixels that has one, 2 per channel and pair; the gradient 60 and
    4."""
    mesh = 16 * vertices + 24 * faces
    forward = Cost(60 * faces + (40 + 2 * channels) * pairs, mesh + 8 * pixels * (1 + channels))
    return both(forward, Cost(60 * faces + (60 + 4 * channels) * pairs, mesh + 8 * pixels * (2 + channels)))


def elementwise(cells: int, flop: Number, bytes_: Number) -> dict[str, Cost]:
    return both(Cost(cells * flop, cells * bytes_), None)
