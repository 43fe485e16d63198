"""Independent slow oracles: float64 loops written from the dossiers, sharing no code with the ops."""

import itertools
import math

import numpy as np

PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)


def grid_levels(dims, levels, base, finest, log2_entries, pad=8):
    """(scale, resolution, entries, offset) per level."""
    out, offset = [], 0
    for i in range(levels):
        growth = (finest / base) ** (i / (levels - 1)) if levels > 1 else 1.0
        scale = float(np.float32(base * growth - 1))
        resolution = math.ceil(scale) + 1
        entries = min(2**log2_entries, (resolution + 1) ** dims)
        entries = (entries + pad - 1) // pad * pad
        out.append((scale, resolution, entries, offset))
        offset += entries
    return out, offset


def grid_index(cell, resolution, entries, kind):
    stride, index = 1, 0
    for c in cell:
        if stride > entries:
            break
        index += c * stride
        stride *= resolution + 1
    if kind == "hash" and stride > entries:
        index = 0
        for c, prime in zip(cell, PRIMES):
            index ^= (c * prime) % 2**32
    return index % entries


def grid_encode(points, tables, *, levels, base, finest, log2_entries, kind, interpolation="linear", pad=8):
    """[N,P,D] points, [P,T,F] tables -> [N,P,L*F]."""
    n, planes, dims = points.shape
    features = tables.shape[-1]
    table, _ = grid_levels(dims, levels, base, finest, log2_entries, pad)
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


def march(o, d, bits, noise, *, side, box, dt, t_min, samples):
    """The originals' while loop for one ray, in float64: (t of kept samples, whether rounding could change them)."""
    near, far = -math.inf, math.inf
    for axis in range(3):
        with np.errstate(divide="ignore", invalid="ignore"):  # parallel: both infinite, of one sign outside
            a, b = (box[axis] - o[axis]) / d[axis], (box[axis + 3] - o[axis]) / d[axis]
        near, far = max(near, min(a, b)), min(far, max(a, b))
    near = max(near, t_min)
    if near >= far:
        return [], abs(near - far) < 1e-5
    kept, close, t = [], False, near + dt * noise
    while t < far and len(kept) < samples:
        x = np.clip(o + t * d, -1, 1)
        scaled = np.clip(0.5 * (x + 1) * side, 0, side - 1)
        close |= bool(np.any(np.abs(scaled - np.round(scaled)) < 1e-4)) or far - t < 1e-5
        n = scaled.astype(int)
        code = morton(*map(int, n))
        if bits[code // 8] >> (code % 8) & 1:
            kept.append(t)
            t += dt
        else:
            leaps = [(((n[i] + 0.5 + 0.5 * np.sign(d[i])) / side) * 2 - 1 - x[i]) / d[i] for i in range(3) if d[i] != 0]
            target = t + max(0.0, min(leaps))
            while True:
                t += dt
                if t >= target:
                    break
    return kept, close


def composite(sigma, valid, t, weighted, plain, dt, stop=1e-4):
    """One ray: (weighted sums, plain sums, weight sum, depth)."""
    transmittance, ws, depth = 1.0, 0.0, 0.0
    sums, plains = np.zeros(weighted.shape[-1]), np.zeros(plain.shape[-1])
    for i in range(len(sigma)):
        if not valid[i]:
            continue
        alpha = 1 - math.exp(-sigma[i] * dt)
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
