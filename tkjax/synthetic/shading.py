"""Colours and light. Everything returns display rgb in 0…1 for points that the march has found."""

import jax.numpy as jnp
import numpy as np

from tkjax.synthetic import body as body_
from tkjax.synthetic import shape
from tkjax.synthetic.packed import Packed, stage
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
    ix, iy, iz = [v.astype(jnp.int32) for v in (fx, fy, fz)]
    tx, ty, tz = x - fx, y - fy, z - fz
    tx, ty, tz = [t * t * (3 - 2 * t) for t in (tx, ty, tz)]
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
    rim_l = jnp.maximum(dot(n, rim), 0.0) * fres * 1.2
    return out, spec * 0.28, [rim_l * c for c in RIM_RGB]


@stage
def _skin_noise(f, x, y, z):
    """Blotches of three sizes and freckles at rest position, each -1…1."""
    a, b, c = 0.8 * x - 0.6 * z, 0.8 * y + 0.36 * x + 0.48 * z, 0.8 * z - 0.6 * y + 0.2 * x
    u, v, w = 0.8 * x + 0.6 * y, 0.48 * y - 0.64 * x + 0.6 * z, 0.8 * z + 0.48 * x - 0.36 * y
    return (
        noise(0.55 * a + 7, 0.55 * b, 0.55 * c),
        noise(1.7 * b, 1.7 * c + 3, 1.7 * a),
        noise(5.5 * c, 5.5 * a, 5.5 * b + 9),
        noise(2.6 * u + 40, 2.6 * v, 2.6 * w),
    )


@stage
def _skin_albedo(f, x, y, z, big, mid, fine, spots):
    """Skin at rest position (x, y, z): warmer cheeks, nose, chin and ears, darker eye hollows, blotches."""
    ax = mirror(x)
    red = (
        0.55 * jnp.exp(-(((ax - 4.1) / 1.7) ** 2) - ((y + 0.9) / 1.6) ** 2)
        + 0.55 * jnp.exp(-((ax / 1.3) ** 2) - ((y + 0.7) / 1.1) ** 2)
        + 0.35 * jnp.exp(-((ax / 1.6) ** 2) - ((y + 8.3) / 1.2) ** 2)
        + 0.8 * smoothstep(7.2, 8.4, ax)
    ) + 0.22 * big
    hollow = jnp.exp(-(((ax - 3.0) / 1.7) ** 2) - ((y - 2.4) / 1.15) ** 2) * smoothstep(1.0, 3.0, z)
    freckle = smoothstep(0.45, 0.85, spots) * smoothstep(0.0, 3.0, z)
    tone = (1.0 + 0.050 * big + 0.045 * mid + 0.035 * fine - 0.17 * hollow) * (1.0 - 0.09 * freckle)
    s = f["c_skin"]
    red = jnp.clip(red, -0.3, 1.0)
    return [s[0] * tone * (1 + 0.02 * red), s[1] * tone * (1 - 0.20 * red), s[2] * tone * (1 - 0.22 * red)]


@stage
def _brow(f, rx, ry, rz):
    """Coverage of the eyebrows, with hairs."""
    ax = mirror(rx)
    t = jnp.clip((ax - shape.BROW_START) / shape.BROW_LENGTH, 0.0, 1.0)
    _, centre = shape.brow_line(t, f)
    half = (0.44 - 0.27 * t) * f["brow_w"]
    across = (ry - centre) / half
    edge = smoothstep(1.25, 0.45, jnp.abs(across)) * smoothstep(0.95, 1.55, ax) * smoothstep(5.6, 4.9, ax)
    hairs = 0.80 + 0.28 * noise(7.0 * ax - 5.0 * ry, 2.5 * ry + 1.5 * ax, rx * 0 + 3.0)
    return edge * hairs * smoothstep(0.5, 1.5, rz)


@stage
def _rest(f, x, y, z):
    return shape.to_rest(x, y, z, f)


@stage
def _bare(f, rx, ry, rz):
    return shape.rest_skin(rx, ry, rz, f)


@stage
def _layers(f, x, y, z, rx, ry, rz, bare):
    return shape.layers_at(x, y, z, (rx, ry, rz), bare, f), shape.hair(x, y, z, bare, f)


@stage
def _lid_weights(f, x, y, z):
    """Redness, crease and lashes of the lids, 0…1."""
    ax, left = mirror(x), x > 0.0
    ex = ax - shape.EYE[0]
    y_up, y_low = shape.lid_curves(ex, f, left)
    blink = jnp.where(left, f["blink_l"], f["blink_r"])
    front = smoothstep(2.0, 3.0, z)
    near = smoothstep(1.9, 1.2, jnp.abs(ex)) * front
    red = jnp.exp(-((jnp.minimum(jnp.abs(y - y_up), jnp.abs(y - y_low)) / 0.22) ** 2)) * near
    # the crease of the upper lid flattens out as the eye shuts
    s = jnp.clip(ex / shape.LID_HALF_WIDTH, -1, 1)
    crease_y = shape.LID_CORNER_Y + 0.1 + 0.98 * (1 - 0.75 * s * s)
    crease = jnp.exp(-(((y - crease_y) / 0.10) ** 2)) * near * (1 - 0.45 * blink)
    up = jnp.exp(-(((y - y_up - 0.03) / 0.085) ** 2)) * smoothstep(1.38, 1.22, jnp.abs(ex)) * front
    low = jnp.exp(-(((y - y_low + 0.02) / 0.05) ** 2)) * smoothstep(1.2, 0.9, jnp.abs(ex)) * front
    return red, crease, jnp.clip(0.93 * up + 0.35 * low, 0, 1)


@stage
def _lip_weights(f, x, y, z, d_lip, rx, ry, rz):
    """Vermilion, the dark line where lips meet, the upper lip, fine folds; and depth behind the lips in cm."""
    ax = mirror(x)
    y_up, y_low, h_up, h_low, s = shape.lip_curves(ax, f)
    middle = 0.5 * (y_up + y_low)
    inside = jnp.minimum(y_up + h_up - y, y - (y_low - h_low))
    lip = smoothstep(-0.05, 0.07, inside) * smoothstep(0.2, 0.06, d_lip)
    lip = lip * smoothstep(3.2, 3.9, z) * smoothstep(1.02, 0.97, ax / f["mouth_w"])
    seam = jnp.exp(-(((y - middle) / 0.07) ** 2)) * smoothstep(0.25, 0.05, y_up - y_low)
    seam = seam * smoothstep(1.04, 0.96, ax / f["mouth_w"])
    upper = smoothstep(-0.1, 0.1, y - middle)
    folds = 1 + 0.07 * noise(6.0 * rx, 0.8 * ry, rz)
    return lip, seam * lip, upper, folds, jnp.clip(shape.lip_depth(s, f) - z, 0.0, 6.0)


@stage
def _skin_colour(f, albedo, rx, ry, rz, lid_red, crease, lash, brow, lip, seam, upper, folds, n, view, light):
    alb = [albedo[0] * (1 - 0.10 * lid_red), albedo[1] * (1 - 0.26 * lid_red), albedo[2] * (1 - 0.25 * lid_red)]
    alb = scale(alb, 1 - 0.42 * crease)
    dark_hair = [0.45 * f["c_hair"][i] for i in range(3)]
    alb = mix(alb, dark_hair, lash)
    alb = mix(alb, scale(dark_hair, 1.6), jnp.clip(brow, 0, 1) * 0.88)
    lip_rgb = [0.47 * folds * f["lip_red"], 0.130 * folds, 0.125 * folds]
    alb = mix(alb, scale(lip_rgb, 1 - 0.14 * upper), lip)
    alb = scale(alb, 1 - 0.72 * seam)
    ax = mirror(rx)
    oily = jnp.exp(-((ax / 1.6) ** 2)) * smoothstep(-1.5, 0.5, ry)
    diff, spec, rim = light_skin(n, view, light[0], light[1], f, 0.5 + 0.4 * oily + 0.7 * lip)
    # nostrils swallow light
    nostril = jnp.exp(-(((ax - 0.78) / 0.34) ** 2) - ((ry + 1.80) / 0.30) ** 2) * smoothstep(4.6, 5.0, rz)
    diff = scale(diff, 1 - 0.72 * nostril * smoothstep(0.2, -0.3, n[1]))
    return [a * d + spec + r for a, d, r in zip(alb, diff, rim)]


@stage
def _mouth_colours(f, x, depth, n, light):
    """Walls of the cavity, teeth and tongue: darker with depth."""
    ax = mirror(x)
    inside = jnp.exp(-depth * 0.5)
    cavity = [0.085 * inside, 0.015 * inside, 0.014 * inside]
    lit = 0.66 + 0.34 * jnp.maximum(dot(n, f["key"]), 0.0)
    fade = jnp.exp(-jnp.maximum(depth - 0.6, 0.0) * 0.5) * (0.55 + 0.45 * light[1])
    arc = (ax + 0.02 * ax**3) / 0.82
    gap = 1 - 0.30 * smoothstep(0.42, 0.5, jnp.abs(arc - jnp.floor(arc) - 0.5))
    teeth = scale([0.86, 0.82, 0.71], fade * lit * gap)
    tongue = scale([0.40, 0.125, 0.12], (0.10 + 0.55 * inside) * (0.4 + 0.6 * light[1]) * lit)
    return cavity, teeth, tongue


@stage
def _eye_colour(f, x, y, z, n, view, light):
    ax, left = mirror(x), x > 0.0
    ex = ax - shape.EYE[0]
    y_up, _ = shape.lid_curves(ex, f, left)
    r3 = shape.EYE_RADIUS
    ec = [(x - jnp.sign(x) * shape.EYE[0]) / r3, (y - shape.EYE[1]) / r3, (z - shape.EYE[2]) / r3]
    g = [f["gaze"][i] for i in range(3)]
    r = jnp.sqrt(jnp.maximum(2 - 2 * jnp.clip(dot(ec, g), -1.0, 1.0), 0.0)) / 0.49  # 1 at the limbus
    streak = noise(14.0 * (ec[0] - g[0]) / (r + 0.15), 14.0 * (ec[1] - g[1]) / (r + 0.15), x * 0 + 1.0)
    bright = (1.15 + 0.35 * streak) * (0.55 + 0.9 * smoothstep(0.95, 0.35, r))
    iris = [f["c_iris"][i] * bright for i in range(3)]
    pink = smoothstep(0.6, 1.25, jnp.abs(ex))
    eye = mix([0.72, 0.665 * (1 - 0.18 * pink), 0.63 * (1 - 0.2 * pink)], iris, smoothstep(1.06, 0.94, r))
    eye = scale(eye, (1 - 0.93 * smoothstep(0.46, 0.36, r)) * (1 - 0.35 * jnp.exp(-(((r - 1.0) / 0.12) ** 2))))
    # the upper lid shades the ball
    under = smoothstep(-0.02, 0.42, y_up - y)
    key = f["key"]
    eye = scale(eye, (0.42 + 0.58 * under) * (0.6 + 0.4 * light[1]) * (0.70 + 0.42 * jnp.maximum(dot(n, key), 0.0)))
    # wet highlight of the cornea, whose bulge leans the normal towards the gaze
    cn = [ni + 0.35 * gi for ni, gi in zip(n, g)]
    ndh = halfway(cn, key, view) / jnp.sqrt(dot(cn, cn) + 1e-9)
    glint = smoothstep(0.984, 0.992, ndh) * 0.9 * smoothstep(0.0, 0.12, y_up - y)
    return [e + glint for e in eye]


@stage
def _strands(f, x, y, z):
    """Strands along the combing, about -1.5…1.5, and how deep inside the hairline a point lies, cm."""
    part = x - f["hair_part"]
    phi = jnp.arctan2(part, y - 6.0 + 0.3 * z)
    strand = noise(16.0 * phi + 0.4 * z, 0.35 * z, 0.35 * y) + 0.6 * noise(34.0 * phi, 0.6 * z + 0.9 * y, y * 0 + 5.0)
    return strand, shape.hair_region(x, y, z, f)


@stage
def _hair_colour(f, strand, n, view, light):
    shadow, ao = light[0], light[1]
    nk = jnp.maximum(dot(n, f["key"]), 0.0)
    band = jnp.exp(-(((halfway(n, f["key"], view) - 0.86 + 0.05 * strand) / 0.10) ** 2))
    sky = 0.5 + 0.5 * dot(n, f["up"])
    lit = (0.55 * sky * ao + 1.05 * nk * shadow + 0.22) * 1.15 * (1.0 + 0.38 * strand)
    shine = band * (0.3 + 0.7 * shadow) * (1 + 0.5 * strand)
    edge = 0.02 * (1 - jnp.maximum(dot(n, view), 0.0)) ** 3
    return [f["c_hair"][i] * lit + (0.035 + 0.35 * f["c_hair"][i]) * shine + edge for i in range(3)]


@stage
def _head_blend(f, x, layers, d_hair, lip, strand, inside, skin, cavity, teeth, tongue, eye, hair):
    """Display rgb [N,3] of whatever lies nearest."""
    ax = mirror(x)
    # the hairline: single hairs over skin, seen from either side of it
    cover = smoothstep(-0.45, 0.45, inside + 0.28 * strand)
    fall = f["hair_long"] * jnp.maximum(smoothstep(-0.35, -0.6, inside), smoothstep(0.3, 0.6, layers["bare"]))
    hair, skin = mix(skin, hair, jnp.maximum(cover, fall)), mix(skin, hair, cover * smoothstep(0.2, -0.6, ax - 8.2))
    hollow = (layers["cavity"] < 0.06) & (layers["skin"] < layers["lip"] + 0.04) & (lip < 0.5)
    rgb = [jnp.where(hollow, a, b) for a, b in zip(cavity, skin)]
    best = shape.smooth_min(layers["skin"], layers["lip"], 0.2)
    for d, colour in ((layers["teeth"], teeth), (layers["tongue"], tongue), (layers["eye"], eye), (d_hair, hair)):
        rgb = [jnp.where(d < best, a, b) for a, b in zip(colour, rgb)]
        best = jnp.minimum(best, d)
    return display(rgb)


def head_colour(f: Packed, p, n, view, light):
    """Display rgb [N,3] and label [N] of head points p with normals n, directions to the viewer and light [2,N]."""
    rest = _rest(f, *p)
    bare = _bare(f, *rest)
    layers, d_hair = _layers(f, *p, *rest, bare)
    albedo = _skin_albedo(f, *rest, *_skin_noise(f, *rest))
    lip, seam, upper, folds, depth = _lip_weights(f, *p, layers["lip"], *rest)
    skin = _skin_colour(
        f, albedo, *rest, *_lid_weights(f, *p), _brow(f, *rest), lip, seam, upper, folds, n, view, light
    )
    mouth = _mouth_colours(f, p[0], depth, n, light)
    eye = _eye_colour(f, *p, n, view, light)
    strand, inside = _strands(f, *p)
    hair = _hair_colour(f, strand, n, view, light)
    rgb = _head_blend(f, p[0], layers, d_hair, lip, strand, inside, skin, *mouth, eye, hair)
    return rgb, np.ones(len(rgb), np.uint8)


def halfway(n, key, view):
    """Cosine between n and the direction half way between light and viewer, times |n|."""
    half = [k + v for k, v in zip(key, view)]
    return dot(n, half) / jnp.sqrt(dot(half, half) + 1e-9)


@stage
def _body_layers(f, x, y, z):
    return body_.body_layers(x, y, z, f)


@stage
def _weave(f, x, y, z):
    return 1 + 0.10 * noise(4.5 * x, 4.5 * y, 4.5 * z) + 0.06 * noise(0.6 * x, 0.6 * y, 0.6 * z)


@stage
def _body_blend(f, x, y, z, layers, albedo, weave, n, view, light):
    shadow, ao = light[0], light[1]
    cloth_hit = layers["cloth"] < layers["skin"]
    red = smoothstep(-15.0, -19.0, y)
    alb = [albedo[0], albedo[1] * (1 - 0.10 * red), albedo[2] * (1 - 0.12 * red)]
    diff, spec, rim = light_skin(n, view, shadow, ao, f, 0.35)
    skin = [a * d + spec + r for a, d, r in zip(alb, diff, rim)]
    rib = smoothstep(-0.75, -0.6, layers["ring"])
    ribs = 1 + rib * 0.12 * jnp.sin(9.0 * jnp.arctan2(x, z + 5.5) * 4.0)
    stripe = 1 + 0.55 * f["stripe"] * smoothstep(0.25, 0.45, jnp.sin(1.6 * y + 0.02 * x * x)) * (1 - rib)
    key, fill, _, up = _lights(f)
    nk = jnp.maximum((dot(n, key) + 0.15) / 1.15, 0.0) * shadow
    nf = jnp.maximum(dot(n, fill), 0.0)
    sky = 0.5 + 0.5 * dot(n, up)
    fuzz = 0.25 * (1 - jnp.maximum(dot(n, view), 0.0)) ** 2
    cloth = [
        f["c_cloth"][i] * weave * ribs * stripe
        * (0.95 * KEY_RGB[i] * nk + FILL_RGB[i] * nf + 0.7 * SKY_RGB[i] * sky * ao + fuzz)
        for i in range(3)
    ]  # fmt: skip
    return display([jnp.where(cloth_hit, a, b) for a, b in zip(cloth, skin)]), jnp.where(cloth_hit, 3, 2)


def body_colour(f: Packed, p, n, view, light):
    """Display rgb [N,3] and label (2 neck, 3 torso) of body points."""
    x, y, z = p
    layers = _body_layers(f, *p)
    high = y + 60.0  # away from the face's own reds
    albedo = _skin_albedo(f, x, high, z, *_skin_noise(f, x, high, z))
    return _body_blend(f, x, y, z, layers, albedo, _weave(f, *p), n, view, light)
