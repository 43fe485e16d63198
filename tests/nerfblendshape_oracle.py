"""NeRFBlendShape in float64, literally from its dossier (§3, §4): coefficients, tables, field, pictures ray by ray."""

import numpy as np

from tests import oracle
from tests.networks_oracle import f64, mlp
from tests.rad_nerf_oracle import sh4, sigmoid


def softplus(x):
    return np.logaddexp(0.0, x)


def clamped(values, low, high):
    """§3.1 with the constant 1 in front: max(min(e, high), low)."""
    return np.maximum(np.minimum(np.concatenate([[1.0], f64(values)]), f64(high)), f64(low))


def blended(tables, weights):
    """sum_k weights_k tables_k of [T,n,F]."""
    out = np.zeros(tables.shape[1:])
    for weight, table in zip(f64(weights), f64(tables), strict=True):
        out += weight * table
    return out


def features(spec, table, x, bound):
    """Of a point, clamped to ±bound (§3.2, §4.2)."""
    shape = {k: getattr(spec, k) for k in ("levels", "base", "finest", "log2_entries", "kind", "pad")}
    unit = (np.clip(f64(x), -bound, bound) + bound) / (2 * bound)
    return oracle.grid_encode(unit[None, None], f64(table)[None], **shape)[0, 0]


def field(spec, params, table, x, d, bound):
    """(sigma, rgb [3]) at x along d (§3.3)."""
    h = mlp(params["sigma"], features(spec, table, x, bound))
    return softplus(h[0]), sigmoid(mlp(params["colour"], np.concatenate([sh4(d), h[1:]])))


def camera(matrix):
    """§2.3: `transform_matrix` of the json -> rotation and centre in the marched space."""
    m = f64(matrix)
    rows = [[m[k, 0], -m[k, 1], -m[k, 2], 0.33 * m[k, 3]] for k in (1, 2, 0)]
    return np.array(rows)


def ray(matrix, focal, centre, column, row):
    """Origin and direction through a whole pixel number (§2.3)."""
    pose = camera(matrix)
    d = pose[:, :3] @ np.array([(column - centre[0]) / focal[0], (row - centre[1]) / focal[1], 1.0])
    return pose[:, 3], d / np.linalg.norm(d)


def colour(spec, params, table, o, d, bits, background, stop, **march):
    """(picture's colour, alpha, whether rounding could change the kept samples) of a ray."""
    kept, close = oracle.march(o, d, bits, 0.0, **march)
    through, rgb = 1.0, np.zeros(3)
    for t, dt in kept:
        sigma, c = field(spec, params, table, o + t * d, d, march["bound"])
        alpha = 1 - np.exp(-sigma * dt)
        rgb += through * alpha * c
        through *= 1 - alpha
        close |= abs(through - stop) < 1e-5
        if through < stop:
            break
    return rgb + through * f64(background), 1 - through, close
