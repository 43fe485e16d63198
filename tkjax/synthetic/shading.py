"""Colours and light. Everything returns display rgb in 0…1 for points that the march has found."""

import jax.numpy as jnp
import numpy as np

from tkjax.synthetic import body as body_
from tkjax.synthetic import shape
from tkjax.synthetic.shape import mirror, smoothstep

# directions to the lights in stage axes: key from above and left, fill from the right, rim from behind
KEY = np.array([-0.42, 0.55, 0.78]) / np.linalg.norm([-0.42, 0.55, 0.78])
FILL = np.array([0.75, 0.12, 0.62]) / np.linalg.norm([0.75, 0.12, 0.62])
RIM = np.array([0.55, 0.35, -0.75]) / np.linalg.norm([0.55, 0.35, -0.75])
KEY_RGB, FILL_RGB, RIM_RGB = (1.42, 1.30, 1.16), (0.42, 0.46, 0.54), (0.22, 0.24, 0.27)
SKY_RGB, GROUND_RGB = (0.50, 0.53, 0.58), (0.30, 0.25, 0.22)


def _hash(ix, iy, iz):
    h = (ix * np.int32(374761393)) ^ (iy * np.int32(668265263)) ^ (iz * np.int32(1274126177))
    h = (h ^ ((h >> 13) & 0x7FFFF)) * np.int32(1103515245)
    return ((h >> 8) & 0xFFFF).astype(jnp.float32) * (2.0 / 65535.0) - 1.0


def noise(x, y, z):
    """Value noise in -1…1 on the unit lattice."""
    fx, fy, fz = jnp.floor(x), jnp.floor(y), jnp.floor(z)
    ix, iy, iz = fx.astype(jnp.int32), fy.astype(jnp.int32), fz.astype(jnp.int32)
    tx, ty, tz = x - fx, y - fy, z - fz
    tx, ty, tz = (t * t * (3 - 2 * t) for t in (tx, ty, tz))
    out = 0.0
    for dx in (0, 1):
        for dy in (0, 1):
            for dz in (0, 1):
                w = (tx if dx else 1 - tx) * (ty if dy else 1 - ty) * (tz if dz else 1 - tz)
                out = out + w * _hash(ix + dx, iy + dy, iz + dz)
    return out


def mix(a, b, t):
    return [ai + (bi - ai) * t for ai, bi in zip(a, b)]


def scale(a, t):
    return [ai * t for ai in a]


def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def display(rgb):
    """Linear light -> display rgb: a soft shoulder, then the sRGB curve."""
    out = []
    for c in rgb:
        c = jnp.maximum(c, 0.0)
        c = jnp.where(c > 0.6, 0.6 + 0.4 * (1.0 - jnp.exp(-(c - 0.6) / 0.4)), c)
        out.append(jnp.where(c < 0.0031308, 12.92 * c, 1.055 * jnp.maximum(c, 0.0031308) ** (1 / 2.4) - 0.055))
    return jnp.stack(out, -1)


def _lights(f):
    return [f["key"], f["fill"], f["rim"], f["up"]]


def light_skin(n, view, shadow, ao, f, gloss):
    """(diffuse rgb, specular) of skin: wrapped light whose red reaches further round than its blue."""
    key, fill, rim, up = _lights(f)
    ndl = dot(n, key)
    wraps = (0.42, 0.24, 0.17)
    sky = 0.5 + 0.5 * dot(n, up)
    out = []
    for i in range(3):
        w = wraps[i]
        k = jnp.maximum((ndl + w) / (1 + w), 0.0) ** 1.15
        fl = jnp.maximum((dot(n, fill) + w) / (1 + w), 0.0)
        # light that leaks under the edge of a shadow is red
        sh = shadow ** (0.8 + 0.5 * i)
        amb = (GROUND_RGB[i] + (SKY_RGB[i] - GROUND_RGB[i]) * sky) * ao ** (0.8 + 0.25 * i)
        out.append(0.62 * KEY_RGB[i] * k * sh + FILL_RGB[i] * fl * (0.35 + 0.65 * ao) + 0.62 * amb)
    half = [k + v for k, v in zip(key, view)]
    hn = jnp.sqrt(dot(half, half) + 1e-9)
    ndh = jnp.maximum(dot(n, half) / hn, 0.0)
    ndv = jnp.maximum(dot(n, view), 0.0)
    fres = 0.04 + 0.96 * (1 - ndv) ** 5
    spec = gloss * shadow * (0.55 * ndh**14 + 0.8 * ndh**50)
    rim_l = jnp.maximum(dot(n, rim), 0.0) * fres * 2.0
    return out, spec * 0.28, [rim_l * c for c in RIM_RGB]


def skin_albedo(x, y, z, f):
    """Skin at rest position (x, y, z): blotches, freckles, warmer cheeks, nose, ears; darker eye hollows."""
    a, b, c = 0.8 * x - 0.6 * z, 0.8 * y + 0.36 * x + 0.48 * z, 0.8 * z - 0.6 * y + 0.2 * x
    big = noise(0.55 * a + 7, 0.55 * b, 0.55 * c)
    mid = noise(1.7 * b, 1.7 * c + 3, 1.7 * a)
    fine = noise(5.5 * c, 5.5 * a, 5.5 * b + 9)
    ax = mirror(x)
    red = (
        0.55 * jnp.exp(-(((ax - 4.1) / 1.7) ** 2) - ((y + 0.9) / 1.6) ** 2)
        + 0.55 * jnp.exp(-((ax / 1.3) ** 2) - ((y + 0.7) / 1.1) ** 2)
        + 0.35 * jnp.exp(-((ax / 1.6) ** 2) - ((y + 8.3) / 1.2) ** 2)
        + 0.8 * smoothstep(7.2, 8.4, ax)
    ) + 0.22 * big
    hollow = jnp.exp(-(((ax - 3.0) / 1.7) ** 2) - ((y - 2.4) / 1.15) ** 2) * smoothstep(1.0, 3.0, z)
    tone = 1.0 + 0.050 * big + 0.045 * mid + 0.035 * fine - 0.17 * hollow
    u, v, w = 0.8 * x + 0.6 * y, 0.48 * y - 0.64 * x + 0.6 * z, 0.8 * z + 0.48 * x - 0.36 * y
    freckle = smoothstep(0.45, 0.85, noise(2.6 * u + 40, 2.6 * v, 2.6 * w)) * smoothstep(0.0, 3.0, z)
    tone = tone * (1.0 - 0.09 * freckle)
    s = f["c_skin"]
    red = jnp.clip(red, -0.3, 1.0)
    return [s[0] * tone * (1 + 0.02 * red), s[1] * tone * (1 - 0.20 * red), s[2] * tone * (1 - 0.22 * red)]


def brow_weight(rx, ry, rz, f):
    """Coverage of the eyebrows, with hairs."""
    ax = mirror(rx)
    t = jnp.clip((ax - 1.25) / 4.1, 0.0, 1.0)
    centre = 4.45 + 0.95 * t - 1.25 * t**3.0 + f["brow"]
    half = (0.44 - 0.27 * t) * f["brow_w"]
    across = (ry - centre) / half
    edge = smoothstep(1.25, 0.45, jnp.abs(across)) * smoothstep(0.95, 1.55, ax) * smoothstep(5.6, 4.9, ax)
    hairs = 0.80 + 0.28 * noise(7.0 * ax - 5.0 * ry, 2.5 * ry + 1.5 * ax, rx * 0 + 3.0)
    return edge * hairs * smoothstep(0.5, 1.5, rz)


def head_colour(p, n, view, shadow, ao, f):
    """Display rgb [N,3] of head points p (tuples of arrays) with normals n and directions to the viewer."""
    x, y, z = p
    layers = shape.face_layers(x, y, z, f)
    d_hair = shape.hair(x, y, z, layers["bare"], f)
    rx, ry, rz = shape.to_rest(x, y, z, f)
    ax = mirror(x)
    left = x > 0.0
    ex = ax - shape.EYE[0]
    y_up, y_low = shape.lid_curves(ex, f, left)
    blink = jnp.where(left, f["blink_l"], f["blink_r"])

    # --- skin with brows, lids, lips
    alb = skin_albedo(rx, ry, rz, f)
    near_eye = smoothstep(1.9, 1.2, jnp.abs(ex)) * smoothstep(2.0, 3.0, z)
    lid_red = jnp.exp(-((jnp.minimum(jnp.abs(y - y_up), jnp.abs(y - y_low)) / 0.22) ** 2)) * near_eye
    alb = [alb[0] * (1 - 0.10 * lid_red), alb[1] * (1 - 0.26 * lid_red), alb[2] * (1 - 0.25 * lid_red)]
    # crease of the upper lid: flattens out as the eye shuts
    s = jnp.clip(ex / shape.LID_HALF_WIDTH, -1, 1)
    crease_y = shape.LID_CORNER_Y + 0.1 + 0.98 * (1 - 0.75 * s * s)
    crease = jnp.exp(-(((y - crease_y) / 0.10) ** 2)) * near_eye * (1 - 0.45 * blink)
    alb = scale(alb, 1 - 0.42 * crease)
    # lashes: a dark rim along the upper lid, fainter along the lower
    lash_up = jnp.exp(-(((y - y_up - 0.03) / 0.085) ** 2)) * smoothstep(1.38, 1.22, jnp.abs(ex)) * smoothstep(2.0, 3.0, z)
    lash_low = jnp.exp(-(((y - y_low + 0.02) / 0.05) ** 2)) * smoothstep(1.2, 0.9, jnp.abs(ex)) * smoothstep(2.0, 3.0, z)
    dark_hair = scale([f["c_hair"][i] for i in range(3)], 0.45)
    alb = mix(alb, dark_hair, jnp.clip(0.93 * lash_up + 0.35 * lash_low, 0, 1))
    alb = mix(alb, scale(dark_hair, 1.6), jnp.clip(brow_weight(rx, ry, rz, f), 0, 1) * 0.88)
    # lips
    d_lip = jnp.minimum(layers["lip_up"], layers["lip_low"])
    y_mu, y_ml, h_up, h_low, ls = shape.lip_curves(ax, f)
    edge_up, edge_low = y_mu + h_up - y, y - (y_ml - h_low)  # inside the vermilion: both > 0
    lip_w = smoothstep(-0.05, 0.07, jnp.minimum(edge_up, edge_low)) * smoothstep(0.2, 0.06, d_lip)
    lip_w = lip_w * smoothstep(3.2, 3.9, z) * smoothstep(1.02, 0.97, ax / f["mouth_w"])
    folds = 1 + 0.07 * noise(6.0 * rx, 0.8 * ry, rz)
    lip_rgb = [0.47 * folds * f["lip_red"], 0.130 * folds, 0.125 * folds]
    upper = smoothstep(-0.1, 0.1, y - 0.5 * (y_mu + y_ml))
    lip_rgb = scale(lip_rgb, 1 - 0.14 * upper)
    alb = mix(alb, lip_rgb, lip_w)
    # where closed lips meet
    gap = y_mu - y_ml
    seam = jnp.exp(-(((y - 0.5 * (y_mu + y_ml)) / 0.07) ** 2)) * smoothstep(0.25, 0.05, gap) * lip_w
    seam = seam * smoothstep(1.04, 0.96, ax / f["mouth_w"])
    alb = scale(alb, 1 - 0.72 * seam)
    oily = jnp.exp(-((ax / 1.6) ** 2)) * smoothstep(-1.5, 0.5, y)
    gloss = 0.55 + 0.5 * oily + 0.9 * lip_w
    diff, spec, rim = light_skin(n, view, shadow, ao, f, gloss)
    # nostrils and the corners of the mouth swallow light
    nostril = jnp.exp(-(((mirror(rx) - 0.78) / 0.34) ** 2) - ((ry + 1.80) / 0.30) ** 2) * smoothstep(4.6, 5.0, rz)
    diff = scale(diff, 1 - 0.72 * nostril * smoothstep(0.2, -0.3, n[1]))
    skin = [a * d + spec + r for a, d, r in zip(alb, diff, rim)]

    # --- inside of the mouth: dark, darker with depth
    depth = jnp.clip(shape.lip_depth(ls, f) - z, 0.0, 6.0)
    inside = jnp.exp(-depth * 0.9)
    cav = [0.060 * inside, 0.012 * inside, 0.012 * inside]
    t_col = jnp.exp(-jnp.maximum(depth - 0.55, 0.0) * 0.55) * (0.45 + 0.55 * ao)
    key = f["key"]
    lit = 0.62 + 0.38 * jnp.maximum(dot(n, key), 0.0)
    arc = ax + 0.02 * ax**3
    gapl = jnp.abs(arc / 0.82 - jnp.floor(arc / 0.82) - 0.5)
    tooth_gap = 1 - 0.35 * smoothstep(0.42, 0.5, gapl)
    teeth = scale([0.70, 0.66, 0.56], t_col * lit * tooth_gap)
    tongue = scale([0.36, 0.115, 0.11], (0.25 + 0.75 * inside) * (0.4 + 0.6 * ao) * lit)
    # --- eyes
    ec = [(x - jnp.sign(x) * shape.EYE[0]) / shape.EYE_RADIUS, (y - shape.EYE[1]) / shape.EYE_RADIUS,
          (z - shape.EYE[2]) / shape.EYE_RADIUS]  # fmt: skip
    g = [f["gaze"][i] for i in range(3)]
    c = jnp.clip(dot(ec, g), -1.0, 1.0)
    r = jnp.sqrt(jnp.maximum(2 - 2 * c, 0.0)) / 0.47  # 1 at the limbus
    streak = noise(14.0 * (ec[0] - g[0]) / (r + 0.15), 14.0 * (ec[1] - g[1]) / (r + 0.15), x * 0 + 1.0)
    iris_rgb = [f["c_iris"][i] * (1.15 + 0.35 * streak) * (0.55 + 0.9 * smoothstep(0.95, 0.35, r)) for i in range(3)]
    sclera = [0.66, 0.60, 0.565]
    pink = smoothstep(0.6, 1.25, jnp.abs(ex))
    sclera = [sclera[0], sclera[1] * (1 - 0.18 * pink), sclera[2] * (1 - 0.2 * pink)]
    eye = mix(sclera, iris_rgb, smoothstep(1.06, 0.94, r))
    eye = scale(eye, 1 - 0.93 * smoothstep(0.46, 0.36, r))
    eye = scale(eye, 1 - 0.35 * jnp.exp(-(((r - 1.0) / 0.12) ** 2)))
    under_lid = smoothstep(-0.02, 0.42, y_up - y)
    eye_lit = (0.38 + 0.62 * under_lid) * (0.55 + 0.45 * ao) * (0.66 + 0.42 * jnp.maximum(dot(n, key), 0.0))
    eye = scale(eye, eye_lit)
    # wet highlight of the cornea, whose bulge leans the normal towards the gaze
    cn = [ni + 0.35 * gi for ni, gi in zip(n, g)]
    cl = jnp.sqrt(dot(cn, cn) + 1e-9)
    half = [k + v for k, v in zip(key, view)]
    hl = jnp.sqrt(dot(half, half) + 1e-9)
    ndh = jnp.maximum(dot(cn, half) / (cl * hl), 0.0)
    glint = smoothstep(0.984, 0.992, ndh) * 0.9 * smoothstep(0.0, 0.12, y_up - y)
    eye = [e + glint for e in eye]

    # --- hair: strands along the combing, two highlights
    part = x - f["hair_part"]
    phi = jnp.arctan2(part, y - 6.0 + 0.3 * z)
    strand = noise(16.0 * phi + 0.4 * z, 0.35 * z, 0.35 * y) + 0.6 * noise(34.0 * phi, 0.6 * z + 0.9 * y, y * 0 + 5.0)
    hair_rgb = [f["c_hair"][i] * (1.0 + 0.38 * strand) for i in range(3)]
    nk = jnp.maximum(dot(n, key), 0.0)
    hl_band = jnp.exp(-(((ndh_plain(n, key, view) - 0.86 + 0.05 * strand) / 0.10) ** 2))
    sky = 0.5 + 0.5 * dot(n, f["up"])
    hair_light = 0.55 * sky * ao + 1.05 * nk * shadow + 0.22
    hair = [hair_rgb[i] * hair_light * 1.15 + (0.035 + 0.35 * f["c_hair"][i]) * hl_band * (0.3 + 0.7 * shadow) * (1 + 0.5 * strand) for i in range(3)]
    fres = (1 - jnp.maximum(dot(n, view), 0.0)) ** 3
    hair = [hi + 0.02 * fres * c for hi, c in zip(hair, (1.0, 1.0, 1.1))]

    # the hairline: single hairs over skin, from either side of it
    inside = shape.hair_region(x, y, z, f) + 0.28 * strand
    cover = smoothstep(-0.45, 0.45, inside)
    long_hair = jnp.where(f["hair_long"] > 0.0, smoothstep(0.0, 0.6, layers["bare"] - 0.9), 0.0)
    bare_rgb = skin
    skin = mix(skin, hair, cover * smoothstep(0.2, -0.6, ax - 8.2))
    hair = mix(bare_rgb, hair, jnp.maximum(cover, long_hair))
    d_skin = shape.smooth_min(layers["skin"], d_lip, 0.2)
    in_cavity = (layers["cavity"] < 0.06) & (layers["skin"] < d_lip + 0.04) & (lip_w < 0.5)
    skin = [jnp.where(in_cavity, a, b) for a, b in zip(cav, skin)]
    # 1 skin and lips, 2 teeth, 3 tongue, 4 eye, 5 hair
    best = d_skin
    rgb = skin
    for d, colour in (
        (jnp.minimum(layers["teeth_up"], layers["teeth_low"]), teeth),
        (layers["tongue"], tongue),
        (layers["eye"], eye),
        (d_hair, hair),
    ):
        closer = d < best
        rgb = [jnp.where(closer, a, b) for a, b in zip(colour, rgb)]
        best = jnp.minimum(best, d)
    return display(rgb)


def ndh_plain(n, key, view):
    half = [k + v for k, v in zip(key, view)]
    return dot(n, half) / jnp.sqrt(dot(half, half) + 1e-9)


def body_colour(p, n, view, shadow, ao, f):
    """Display rgb [N,3] and label (2 neck, 3 torso) of body points."""
    x, y, z = p
    layers = body_.body_layers(x, y, z, f)
    cloth_hit = layers["cloth"] < layers["skin"]
    alb = skin_albedo(x, y + 60.0, z, f)
    red = smoothstep(-15.0, -19.0, y)
    alb = [alb[0], alb[1] * (1 - 0.10 * red), alb[2] * (1 - 0.12 * red)]
    diff, spec, rim = light_skin(n, view, shadow, ao, f, 0.35)
    skin = [a * d + spec + r for a, d, r in zip(alb, diff, rim)]
    weave = 1 + 0.10 * noise(4.5 * x, 4.5 * y, 4.5 * z) + 0.06 * noise(0.6 * x, 0.6 * y, 0.6 * z)
    rib = smoothstep(-0.75, -0.6, layers["ring"])
    ribs = 1 + rib * 0.12 * jnp.sin(9.0 * jnp.arctan2(x, z + 5.5) * 4.0)
    stripe = 1 + 0.55 * f["stripe"] * smoothstep(0.25, 0.45, jnp.sin(1.6 * y + 0.02 * x * x)) * (1 - rib)
    cloth = [f["c_cloth"][i] * weave * ribs * stripe for i in range(3)]
    key, fill, _, up = _lights(f)
    nk = jnp.maximum((dot(n, key) + 0.15) / 1.15, 0.0) * shadow
    nf = jnp.maximum(dot(n, fill), 0.0)
    sky = 0.5 + 0.5 * dot(n, up)
    fuzz = 0.25 * (1 - jnp.maximum(dot(n, view), 0.0)) ** 2
    cloth = [c * (0.95 * KEY_RGB[i] * nk + FILL_RGB[i] * nf + 0.7 * SKY_RGB[i] * sky * ao + fuzz) for i, c in enumerate(cloth)]
    rgb = [jnp.where(cloth_hit, a, b) for a, b in zip(cloth, skin)]
    return display(rgb), jnp.where(cloth_hit, 3, 2).astype(jnp.uint8)
