"""rasterize and antialias once more, in float64 and loops, from the formulas; and meshes to try them on."""

import numpy as np


def centres(size):
    return (2 * np.arange(size) + 1) / size - 1


def weights(vertices, x, y):
    """(a_k [3], what they would be rounded by) of one face [3,4] at one point."""
    q = vertices[:, :2] - np.array([x, y]) * vertices[:, 3:]
    size = np.abs(vertices[:, :2]) + np.abs(np.array([x, y]) * vertices[:, 3:])
    a, noise = np.empty(3), np.empty(3)
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        a[k] = q[i, 0] * q[j, 1] - q[i, 1] * q[j, 0]
        noise[k] = 4e-7 * (size[i, 0] * size[j, 1] + size[i, 1] * size[j, 0])
    return a, noise


def rasterize(clip, faces, height, width):
    """(face, uv, zw, sure); not sure where rounding may decide."""
    clip = np.asarray(clip, np.float64)
    face, zw = np.zeros((height, width), int), np.zeros((height, width))
    uv, sure = np.zeros((height, width, 2)), np.ones((height, width), bool)
    for row, y in enumerate(centres(height)):
        for column, x in enumerate(centres(width)):
            best, near = np.inf, []
            for number, corners in enumerate(faces):
                if min(corners) < 0 or max(corners) >= len(clip) or len({*corners}) < 3:
                    continue
                vertices = clip[corners]
                if not np.all(np.isfinite(vertices)) or np.all(vertices[:, 3] <= 0):
                    continue
                a, noise = weights(vertices, x, y)
                if np.any(a > noise) and np.any(a < -noise):
                    continue  # outside
                if np.abs(a.sum()) <= noise.sum() or np.any(np.abs(a) <= noise):
                    near.append(-np.inf)  # on an edge: anything may come
                    if (np.any(a > 0) and np.any(a < 0)) or a.sum() == 0:
                        continue
                b = a / a.sum()
                w, z = b @ vertices[:, 3], b @ vertices[:, 2]
                slack = 1e-5 * np.abs(vertices[:, 2:]).max()
                if w <= -slack:
                    continue
                if w <= slack or abs(abs(z / w) - 1) < 2e-5 + slack / w * (1 + abs(z / w)):
                    near.append(-np.inf)
                if w <= 0 or not -1 <= z / w <= 1:
                    continue
                near.append(z / w - slack / w * (1 + abs(z / w)))
                if z / w < best:
                    best = z / w
                    face[row, column], zw[row, column], uv[row, column] = number + 1, best, b[:2]
                    error = near[-1]
                    bound = best + (best - error)
            if np.isfinite(best):
                sure[row, column] = sum(n <= bound for n in near) == 1
            else:
                sure[row, column] = not near
    return face, uv, zw, sure


def coordinates(clip, faces, face):
    """uv of given faces."""
    uv = np.zeros((*face.shape, 2))
    for row, y in enumerate(centres(face.shape[0])):
        for column, x in enumerate(centres(face.shape[1])):
            if face[row, column]:
                a, _ = weights(np.asarray(clip, np.float64)[faces[face[row, column] - 1]], x, y)
                uv[row, column] = a[:2] / a.sum()
    return uv


def opposite(faces):
    out = np.full((len(faces), 3), -1)
    for f, corners in enumerate(faces):
        for k in range(3):
            ends = {corners[(k + 1) % 3], corners[(k + 2) % 3]}
            others = [
                other[m] for g, other in enumerate(faces) for m in range(3)
                if g != f and len({*other}) == 3 and min(other) >= 0
                and {other[(m + 1) % 3], other[(m + 2) % 3]} == ends
            ]  # fmt: skip
            if len({*corners}) == 3 and min(corners) >= 0 and len(others) == 1:
                out[f, k] = others[0]
    return out


def antialias(colours, face, zw, clip, faces, across):
    """(picture, alphas [2,H,W] of pairs to the right and below, smallest distance of a decision from its threshold)."""
    height, width, _ = colours.shape
    clip = np.asarray(clip, np.float64)
    out, alphas, doubt = (
        np.array(colours, np.float64),
        np.zeros((2, height, width)),
        np.full((2, height, width), np.inf),
    )
    for axis in (0, 1):
        for row in range(height - axis):
            for column in range(width - 1 + axis):
                p0, p1 = (row, column), (row + axis, column + 1 - axis)
                if face[p0] == face[p1]:
                    continue
                first = face[p1] == 0 or (face[p0] > 0 and zw[p0] < zw[p1])
                s, owner = (1, p0) if first else (-1, p1)
                corners = faces[face[owner] - 1]
                vertices = clip[corners]
                if np.any(vertices[:, 3] <= 0):
                    continue
                centre = np.array([owner[1] + 0.5 - width / 2, owner[0] + 0.5 - height / 2])
                half = np.array([width / 2, height / 2])
                at = vertices[:, :2] / vertices[:, 3:] * half - centre
                at = at[:, ::-1] if axis else at
                edges = []
                for k in range(3):
                    (x1, y1), (x2, y2) = at[(k + 1) % 3], at[(k + 2) % 3]
                    if (y1 < 0) != (y2 < 0):
                        edges.append((s * (x1 * y2 - y1 * x2) / (y2 - y1), k, y2 - y1, x2 - x1))
                if not edges:
                    continue
                (d, k, dy, dx), place = max(edges), (axis, row, column)
                doubt[place] = min(np.abs(at[:, 1]).min(), abs(abs(dy) - abs(dx)), abs(d), abs(d - 1), abs(d - 0.5))
                doubt[place] = min(doubt[place], abs(d + 1 / 16), abs(d - 17 / 16))
                doubt[place] = min(doubt[place], *(d - e[0] for e in edges if e[1] != k), np.inf)
                if abs(dy) < abs(dx):
                    continue
                beside = across[face[owner] - 1, k]
                if 0 <= beside < len(clip) and np.all(np.isfinite(clip[beside])):
                    e1, e2 = at[(k + 1) % 3], at[(k + 2) % 3]
                    v = clip[beside]
                    other = v[:2] * half - centre * v[3]
                    other = other[::-1] if axis else other
                    area = lambda p, w, e1=e1, e2=e2: np.linalg.det([e2 - e1, p - e1 * w])  # noqa: E731
                    mine, its = area(at[k], 1), area(other, v[3])
                    doubt[place] = min(doubt[place], abs(its), abs(mine))
                    if (mine < 0) != (its < 0):
                        continue
                if -1 / 16 < d < 17 / 16:
                    alpha = s * (0.5 - min(max(d, 0), 1))
                    alphas[place] = alpha
                    out[p0 if alpha > 0 else p1] += alpha * (np.float64(colours[p1]) - colours[p0])
    return out, alphas, doubt


# -- meshes


def soup(seed, kind="plain", count=7, vertices=9):
    """clip [V,4], faces [F,3]: triangles anywhere. Kinds: plain, flat (W = 1, Z the same), behind (some W <= 0),
    snapped (to a lattice, so that centres of pixels lie on edges), spoiled (not finite, a vertex twice, or of none)."""
    rng = np.random.default_rng(seed)
    clip = rng.uniform([-1.3, -1.3, -0.9, 1], [1.3, 1.3, 0.9, 1], (vertices, 4))
    faces = np.stack([rng.permutation(vertices)[:3] for _ in range(count)]) if count else np.zeros((0, 3), int)
    if kind == "flat":
        clip[:, 2] = 0.3
    if kind in ("plain", "behind"):
        clip *= rng.uniform(0.5, 3, (vertices, 1))
    if kind == "behind":
        clip[:, 3] = rng.uniform(-1, 2, vertices)
    if kind == "snapped":
        clip[:, :2] = np.round(clip[:, :2] * 8) / 8
    if kind == "spoiled" and count:
        clip[0, rng.integers(0, 4)] = rng.choice([np.nan, np.inf, -np.inf, 1e30])
        faces[0, 0], faces[count // 2, 2], faces[-1, 1] = -1, faces[count // 2, 1], vertices
    return clip.astype(np.float32), faces.astype(np.int32)


def sheet(seed, side=4, jitter=0.35, perspective=True, snap=0):
    """A bent sheet of triangles over more than the picture, each corner shared: no pixel may be missed."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(side + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    xy = (grid + rng.uniform(-jitter, jitter, grid.shape)) / side * 3 - 1.5
    xy = np.round(xy * snap) / snap if snap else xy
    w = rng.uniform(0.5, 2, (len(xy), 1)) if perspective else np.ones((len(xy), 1))
    clip = np.concatenate([xy * w, rng.uniform(-0.5, 0.5, (len(xy), 1)) * w, w], 1)
    first = (grid[:, 0] * (side + 1) + grid[:, 1])[(grid < side).all(1)]
    a, b, c, d = first, first + side + 1, first + side + 2, first + 1
    turned = (rng.random(len(a)) < 0.5)[:, None]
    one = np.where(turned, np.stack([a, b, c], 1), np.stack([a, b, d], 1))
    two = np.where(turned, np.stack([a, c, d], 1), np.stack([b, c, d], 1))
    faces = rng.permutation(np.concatenate([one, two]))
    return clip.astype(np.float32), faces.astype(np.int32)


def sphere(rings=8, segments=12, radius=0.6, centre=(0.0, 0.0, 0.0)):
    """A closed sphere of longitudes and latitudes: vertices [V,3], faces [F,3], outward."""
    theta = np.pi * np.arange(1, rings)[:, None] / rings
    phi = 2 * np.pi * np.arange(segments) / segments
    body = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi], -1)
    points = np.concatenate([[[0, 0, 1]], body.reshape(-1, 3), [[0, 0, -1]]])
    at = lambda r, s: 1 + r * segments + s % segments  # noqa: E731
    faces = []
    for s in range(segments):
        faces += [(0, at(0, s), at(0, s + 1)), (len(points) - 1, at(rings - 2, s + 1), at(rings - 2, s))]
        for r in range(rings - 2):
            faces += [(at(r, s), at(r + 1, s), at(r + 1, s + 1)), (at(r, s), at(r + 1, s + 1), at(r, s + 1))]
    return (points * radius + np.asarray(centre)).astype(np.float32), np.array(faces, np.int32)
