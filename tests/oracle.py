"""Independent slow oracles: float64 loops written from the dossiers, sharing no code with the ops."""

import itertools
import math

import numpy as np

PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)


def grid_levels(dims, levels, base, finest, log2_entries, pad=8, kind="hash"):
    """(scale, resolution, entries, offset) per level."""
    out, offset = [], 0
    for i in range(levels):
        growth = (finest / base) ** (i / (levels - 1)) if levels > 1 else 1.0
        scale = float(np.float32(base * growth - 1))
        resolution = math.ceil(scale) + 1
        entries = min(2**log2_entries, (resolution + 1) ** dims)
        if kind.startswith("base_tiled"):
            entries = min(2**log2_entries, base**dims)  # the coarsest level has at least that many cells
        entries = (entries + pad - 1) // pad * pad
        out.append((scale, resolution, entries, offset))
        offset += entries
    return out, offset


def grid_index(cell, resolution, entries, kind):
    if kind == "base_tiled_2025":
        return sum(c * resolution**d for d, c in enumerate(cell)) % entries if resolution ** len(cell) <= 2**32 else 0
    stride, index = 1, 0
    for c in cell:
        if stride > entries:
            break
        index += c * stride
        stride *= resolution if kind == "base_tiled" else resolution + 1
    if kind == "hash" and stride > entries:
        index = 0
        for c, prime in zip(cell, PRIMES):
            index ^= (c * prime) % 2**32
    return index % entries


def grid_encode(points, tables, *, levels, base, finest, log2_entries, kind, interpolation="linear", pad=8):
    """[N,P,D] points, [P,T,F] tables -> [N,P,L*F]."""
    n, planes, dims = points.shape
    features = tables.shape[-1]
    table, _ = grid_levels(dims, levels, base, finest, log2_entries, pad, kind)
    out = np.zeros((n, planes, levels, features))
    for a, p in itertools.product(range(n), range(planes)):
        x = points[a, p].astype(np.float64)
        if not np.all((x >= 0) & (x <= 1)):
            continue
        for level, (scale, resolution, entries, offset) in enumerate(table):
            pos = x * scale + 0.5
            cell = np.floor(pos).astype(int)
            frac = pos - cell
            if interpolation == "smoothstep":
                frac = frac**2 * (3 - 2 * frac)
            for corner in itertools.product((0, 1), repeat=dims):
                weight = math.prod(f if bit else 1 - f for f, bit in zip(frac, corner))
                index = grid_index([int(c) + bit for c, bit in zip(cell, corner)], resolution, entries, kind)
                out[a, p, level] += weight * tables[p, offset + index]
    return out.reshape(n, planes, -1)


def morton(x, y, z):
    code = 0
    for bit in range(10):
        code |= ((x >> bit) & 1) << (3 * bit) | ((y >> bit) & 1) << (3 * bit + 1) | ((z >> bit) & 1) << (3 * bit + 2)
    return code


def march_cell(x, step, *, side, bound, cascades, cell):
    """(cascade, cell of three integers, bit number, distance of the scaled position from where the cell changes)."""
    reach = max(*(abs(v) for v in x), step * side / 2)
    level = next((c for c in range(cascades - 1) if reach < 2**c), cascades - 1)
    span = bound if level == cascades - 1 else 2.0**level
    scaled = 0.5 * (x / span + 1) * side + (0.5 if cell == "vertex" else 0.0)
    n = np.clip(np.floor(scaled), 0, side if cell == "vertex" else side - 1).astype(int)
    gap = np.abs(scaled - np.round(scaled))[(scaled > 0.5) & (scaled < side - 0.5)].min(initial=1.0)
    gap = min([gap, *(abs(reach - 2.0**c) for c in range(cascades - 1))])
    x, y, z = map(int, n)
    bit = (x * (side + 1) + y) * (side + 1) + z if cell == "vertex" else level * side**3 + morton(x, y, z)
    return level, n, bit, gap


def march(
    o, d, bits, noise, *, side, box, dt, t_min, samples, bound=1.0, dt_gamma=0.0, dt_max=None, cascades=1,
    cell="trunc", leap=False,
):  # fmt: skip
    """One ray in float64: ([(t, dt)] of kept samples, whether rounding could change them).

    noise is one number, the shift of the lattice, or many, of the steps behind the samples.
    With `leap` an empty cell is left as in the originals' loop: on to the first lattice point past its far face.
    """
    near, far = -math.inf, math.inf
    for axis in range(3):
        with np.errstate(divide="ignore", invalid="ignore"):  # parallel: both infinite, of one sign outside
            a, b = (box[axis] - o[axis]) / d[axis], (box[axis + 3] - o[axis]) / d[axis]
        near, far = max(near, min(a, b)), min(far, max(a, b))
    near = max(near, t_min)
    if near >= far:
        return [], abs(near - far) < 1e-5
    rule = dict(side=side, bound=bound, cascades=cascades, cell=cell)

    def step(t):
        return dt if dt_gamma == 0 else min(max(t * dt_gamma, dt), dt_max)

    kept, close, t = [], False, near + step(near) * (0.0 if np.ndim(noise) else noise)
    while t < far and len(kept) < samples:
        x = np.clip(o + t * d, -bound, bound)
        level, n, bit, gap = march_cell(x, step(t), **rule)
        close |= gap < 1e-4 or far - t < 1e-5
        if bits[bit // 8] >> (bit % 8) & 1:
            length = 2 * step(t) * noise[len(kept) % len(noise)] if np.ndim(noise) else step(t)
            kept.append((t, length))
            t += length
            continue
        if leap:
            span = bound if level == cascades - 1 else 2.0**level
            edge = n + 0.5 + 0.5 * np.sign(d)  # of vertices as well: half a cell too far, or not far enough
            leaps = [((edge[i] / side * 2 - 1) * span - x[i]) / d[i] for i in range(3) if d[i] != 0]
            target = t + max(0.0, min(leaps))
            while (t := t + step(t)) < target:
                pass
            continue
        t += step(t)
    return kept, close


def composite(sigma, valid, t, weighted, plain, dt, stop=1e-4):
    """One ray: (weighted sums, plain sums, weight sum, depth). dt is one number or one per sample."""
    dt = np.broadcast_to(np.asarray(dt, np.float64), np.shape(sigma))
    transmittance, ws, depth = 1.0, 0.0, 0.0
    sums, plains = np.zeros(weighted.shape[-1]), np.zeros(plain.shape[-1])
    for i in range(len(sigma)):
        if not valid[i]:
            continue
        alpha = -math.expm1(-sigma[i] * dt[i])
        w = alpha * transmittance
        sums += w * weighted[i]
        plains += plain[i]
        ws += w
        depth += w * t[i]
        transmittance *= 1 - alpha
        if transmittance < stop:
            break
    return sums, plains, ws, depth


def dilate(raster):
    """Maximum over each cell of [n,n,n] and its six face neighbours."""
    out = raster.copy()
    n = raster.shape[0]
    for x, y, z in itertools.product(range(n), repeat=3):
        for step in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
            for sign in (1, -1):
                i, j, k = x + sign * step[0], y + sign * step[1], z + sign * step[2]
                if 0 <= min(i, j, k) and max(i, j, k) < n:
                    out[x, y, z] = max(out[x, y, z], raster[i, j, k])
    return out
