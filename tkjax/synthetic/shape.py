"""Signed distances of the subject in centimetres: head (with lips, lids, teeth, hair, ears) and body.

Head axes: x to the subject's left (right of a frontal picture), y up, z to the viewer, origin and scale of
the canonical face mesh. Points are three arrays x, y, z of one shape; `f` is a dict of scalars: the controls
of one frame (see `controls.frame_controls`) and the looks of one subject. Distances are bounds: march with STEP_SCALE.
"""

import jax.numpy as jnp
import numpy as np

STEP_SCALE = 0.8
JAW_PIVOT = (-0.6, -2.2)  # y, z of the hinge axis of the jaw
EYE = (3.17, 2.62, 2.62)  # centre of the left eyeball
EYE_RADIUS = 1.22
LID_RADIUS = 1.36
LID_CORNER_Y, LID_HALF_WIDTH = 2.56, 1.3
TEETH_Z, TEETH_BEND = 4.5, 0.13

# Skull, cheeks, nose and chin: ellipsoids (centre, radii) joined with the smoothing lengths _JOIN, minus
# Gaussian bumps (centre, 1/width, height). Fitted to the proportions of the canonical face (mean error 0.6 mm).
_ELLIPSOIDS = np.array([
    [0.0, 4.003, -3.603, 7.513, 8.858, 9.197], [0.0, -0.495, -1.239, 7.087, 7.49, 5.666],
    [0.0, -7.574, 3.53, 2.927, 2.392, 1.902], [4.539, -4.036, -1.512, 1.63, 3.274, 2.253],
    [3.919, -0.029, 2.082, 1.523, 2.551, 1.48], [0.0, -3.366, 1.77, 4.327, 3.351, 2.43],
    [1.319, 4.132, 2.382, 4.004, 2.292, 2.623], [0.0, 0.33, 3.695, 1.798, 3.378, 3.513],
    [0.0, -0.49, 6.565, 1.131, 1.295, 1.131], [1.134, -0.681, 5.367, 0.7, 0.759, 1.15],
])  # fmt: skip
_JOIN = (0.6, 3.339, 1.621, 1.011, 2.797, 1.31, 1.726, 0.6, 0.6)
_BUMPS = np.array([
    [2.333, 2.371, 5.278, 0.371, 0.523, 0.135, -0.555], [1.856, 3.178, 3.353, 0.39, 0.785, 0.39, -0.493],
    [0.516, 6.435, 5.325, 1.127, 0.362, 0.139, -0.195], [3.943, 8.226, 2.341, 0.0, 0.345, 0.429, 0.315],
    [6.863, 3.835, -1.0, 0.0, 0.113, 0.377, 0.251], [6.711, 1.501, -0.033, 0.244, 0.588, 0.398, 0.262],
    [1.983, -0.739, 4.02, 0.543, 0.444, 1.126, 0.402], [1.754, 0.828, 3.486, 0.99, 0.153, 0.771, -0.436],
    [0.775, -5.337, 5.149, 0.679, 1.341, 0.0, 0.349], [1.699, -7.674, 4.281, 0.219, 0.104, 0.379, -0.334],
    [3.018, -6.448, 2.464, 0.739, 0.084, 0.62, 0.335], [4.315, -7.96, 1.376, 0.526, 0.32, 0.533, 0.74],
    [7.175, -1.612, -2.592, 0.0, 0.169, 1.034, 0.419], [1.704, -3.081, 5.07, 0.508, 0.893, 0.9, 0.502],
    [0.492, -3.363, 5.97, 0.974, 1.265, 1.265, 0.371], [6.197, 0.311, 1.799, 0.606, 0.324, 1.404, 0.199],
])  # fmt: skip


def smooth_min(a, b, k):
    h = jnp.maximum(k - jnp.abs(a - b), 0.0) / k
    return jnp.minimum(a, b) - h * h * (k * 0.25)


def smooth_max(a, b, k):
    return -smooth_min(-a, -b, k)


def smoothstep(a, b, x):
    t = jnp.clip((x - a) / (b - a), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def ellipsoid(x, y, z, rx, ry, rz):
    """First-order distance to an ellipsoid at the origin: k0 (k0 - 1) / k1, k0 = |p/r|, k1 = |p/r^2|."""
    ax, ay, az = x / rx, y / ry, z / rz
    k0 = jnp.sqrt(ax * ax + ay * ay + az * az + 1e-9)
    bx, by, bz = ax / rx, ay / ry, az / rz
    k1 = jnp.sqrt(bx * bx + by * by + bz * bz + 1e-9)
    return k0 * (k0 - 1.0) / k1


def capsule(x, y, z, a, b, ra, rb):
    """Distance to a cone with round ends from `a` (radius ra) to `b` (radius rb), to first order."""
    bx, by, bz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    px, py, pz = x - a[0], y - a[1], z - a[2]
    h = jnp.clip((px * bx + py * by + pz * bz) / (bx * bx + by * by + bz * bz), 0.0, 1.0)
    qx, qy, qz = px - h * bx, py - h * by, pz - h * bz
    return jnp.sqrt(qx * qx + qy * qy + qz * qz + 1e-9) - (ra + (rb - ra) * h)


def mirror(x, width=0.05):
    """|x|, rounded over `width` cm so that the midline has no crease."""
    return jnp.sqrt(x * x + width * width)


# what varies between subjects: (centre, 1/width) of nose tip, cheek, chin, corner of the jaw, brow ridge
_TRAITS = np.array([
    [0.0, -0.5, 6.4, 0.9, 0.8, 0.7], [4.6, -2.6, 2.8, 0.5, 0.5, 0.5], [0.0, -8.4, 4.2, 0.5, 0.6, 0.5],
    [5.6, -5.8, -0.4, 0.5, 0.45, 0.4], [2.6, 4.2, 4.2, 0.4, 0.9, 0.6],
])  # fmt: skip


def rest_skin(x, y, z, f):
    """Face and skull at rest without lips, lids or ears."""
    ax = mirror(x, 0.4) * f["narrow"]
    d = None
    for i, (cx, cy, cz, rx, ry, rz) in enumerate(_ELLIPSOIDS):
        e = ellipsoid(ax - cx, y - cy, z - cz, rx, ry, rz)
        d = e if d is None else smooth_min(d, e, _JOIN[i - 1])
    for cx, cy, cz, sx, sy, sz, h in _BUMPS:
        q = ((y - cy) * sy) ** 2 + ((z - cz) * sz) ** 2
        if sx:
            q = q + ((ax - cx) * sx) ** 2
        d = d - h * jnp.exp(-q)
    for i, (cx, cy, cz, sx, sy, sz) in enumerate(_TRAITS):
        d = d - f["traits"][i] * jnp.exp(-(((ax - cx) * sx) ** 2) - ((y - cy) * sy) ** 2 - ((z - cz) * sz) ** 2)
    # groove between nose and lip
    return d + 0.10 * jnp.exp(-((x / 0.32) ** 2) - ((y + 2.85) / 0.55) ** 2 - ((z - 5.7) / 0.8) ** 2)


# ---- mouth ---------------------------------------------------------------------------------------------


def lip_curves(ax, f):
    """Inner margins and heights of the lips over |x|: y_up, y_low, height_up, height_low, s = |x|/w in 0…1."""
    s = jnp.clip(ax / f["mouth_w"], 0.0, 1.0)
    arch = 1.0 - s**2.4
    y_up = f["corner_y"] + (f["lip_up_y"] - f["corner_y"]) * arch
    y_low = f["corner_y"] + (f["lip_low_y"] - f["corner_y"]) * (1.0 - s**2.0)
    body = jnp.sqrt(jnp.maximum(1.0 - s**2.0, 0.0))
    bow = 0.26 * jnp.exp(-(((s - 0.27) / 0.15) ** 2))
    height_up = f["lip_h_up"] * (0.08 + (0.80 + bow) * body * (1.0 - 0.45 * s))
    height_low = f["lip_h_low"] * (0.06 + 0.94 * body * (1.0 - 0.12 * s))
    return y_up, y_low, height_up, height_low, s


def lip_depth(s, f):
    """z of the lips' axis over s."""
    return f["lip_z"] + (f["corner_z"] - f["lip_z"]) * s**2.0


def jaw_weight(x, y, f):
    """How far a point at (x, y) follows the jaw, 0…1: a step inside the mouth, a slow blend over the cheeks."""
    ax = jnp.abs(x)
    s = jnp.clip(ax / f["mouth_w"], 0.0, 1.0)
    arch = 1.0 - s * s
    middle = f["corner_y"] + (0.5 * (f["lip_up_y"] + f["lip_low_y"]) - f["corner_y"]) * arch
    half = 0.5 * (f["lip_up_y"] - f["lip_low_y"]) * arch + 0.45 + 2.6 * smoothstep(1.3, 5.5, ax)
    return smoothstep(-half, half, middle - y)


def rotate_jaw(y, z, angle):
    """Turn about the hinge of the jaw; positive angles open (the chin goes down and back)."""
    py, pz = JAW_PIVOT
    c, s = jnp.cos(angle), jnp.sin(angle)
    dy, dz = y - py, z - pz
    return py + c * dy - s * dz, pz + s * dy + c * dz


def to_rest(x, y, z, f):
    """Points of the moved face -> where that flesh lies at rest (the inverse deformation)."""
    w = jaw_weight(x, y, f) * smoothstep(-6.0, -1.0, z)
    y1, z1 = rotate_jaw(y, z, -f["jaw"] * w)
    ax = jnp.abs(x)
    front = smoothstep(0.5, 3.0, z)
    corner = jnp.exp(-(((ax - f["mouth_w"]) / 1.6) ** 2) - ((y - f["corner_y"]) / 1.5) ** 2) * front
    x1 = x - jnp.sign(x) * f["corner_dx"] * corner * smoothstep(0.0, 0.8, ax)
    y1 = y1 - f["corner_dy"] * corner
    pout = jnp.exp(-((x / 2.1) ** 2) - ((y - f["corner_y"]) / 1.7) ** 2) * front
    z1 = z1 - f["protrude"] * 0.75 * pout
    cheek = jnp.exp(-(((ax - 4.0) / 1.6) ** 2) - ((y + 1.2) / 1.6) ** 2) * front
    z1 = z1 - f["smile"] * 0.35 * cheek
    return x1, y1, z1


def lips(x, y, z, f):
    """Distances to the upper and the lower lip (tubes of elliptic section along the margins)."""
    ax = mirror(x)
    y_up, y_low, h_up, h_low, s = lip_curves(ax, f)
    zc = lip_depth(s, f)
    over = jnp.maximum(ax - f["mouth_w"], 0.0)
    full = jnp.sqrt(jnp.maximum(1.0 - s * s, 0.0))
    depth_up, depth_low = 0.12 + f["lip_t_up"] * full, 0.12 + f["lip_t_low"] * full
    seam = 0.03
    a_up, a_low = 0.5 * h_up + seam, 0.5 * h_low + seam
    up = ellipsoid(over, y - (y_up + 0.5 * h_up), z - zc, a_up, a_up, depth_up)
    # the lower lip rolls back with the jaw and tucks under the teeth
    zl = zc - f["low_back"] * (1.0 - s * s)
    low = ellipsoid(over, y - (y_low - 0.5 * h_low), z - zl, a_low, a_low, depth_low)
    return up, low


def cavity(x, y, z, f):
    """Distance to the space behind the lips (negative inside)."""
    ax = mirror(x)
    y_up, y_low, h_up, h_low, _ = lip_curves(ax, f)
    d = jnp.maximum(y - (y_up + 0.42 * h_up), (y_low - 0.42 * h_low) - y)
    d = smooth_max(d, ax - 0.93 * f["mouth_w"], 0.3)
    return jnp.maximum(d * 0.85, 1.4 - z)


def teeth(x, y, z, f):
    """Distances to the upper teeth (fixed to the skull), the lower teeth and the tongue (moving with the jaw)."""
    ax = mirror(x)

    def arch(yy, zz, z0, y_mid, half, bend):
        # biting edges are scalloped a little, tooth by tooth
        front = z0 - bend * ax * ax
        slope = 1.0 / jnp.sqrt(1.0 + (2.0 * bend * ax) ** 2)
        dz = jnp.abs((zz - front + 0.3) * slope) - 0.3
        dy = jnp.abs(yy - y_mid) - half
        dx = ax - 2.5
        return smooth_max(smooth_max(dz, dy, 0.18), dx, 0.2)

    up = arch(y, z, TEETH_Z, -3.72, 0.68 - 0.02 * ax * ax, TEETH_BEND)
    yj, zj = rotate_jaw(y, z, -f["jaw"])
    low = arch(yj, zj, TEETH_Z - 0.22, -5.05, 0.52, TEETH_BEND + 0.01)
    lift = f["tongue"] * smoothstep(1.0, 4.0, zj)
    tongue = ellipsoid(x, yj + 5.1 - 0.6 * lift, zj - 2.2, 1.75, 0.70, 2.0) * 0.8
    return up, low, tongue


# ---- eyes ----------------------------------------------------------------------------------------------


def lid_curves(ex, f, left):
    """Edges of the lids over ex = x - x_eye (mirrored; > 0 towards the ear): y_up, y_low; left picks the side."""
    blink = jnp.where(left, f["blink_l"], f["blink_r"])
    s = jnp.clip(ex / LID_HALF_WIDTH, -1.0, 1.0)
    corner = LID_CORNER_Y + 0.07 * s
    up_arch = (1.0 - s * s) * (1.0 - 0.22 * s)
    low_arch = (1.0 - s * s) * (1.0 + 0.25 * s)
    opened = f["lid_up"] * up_arch
    low = -f["lid_low"] * low_arch * (1.0 - 0.12 * blink)
    shut = low - 0.02
    return corner + opened + (shut - opened) * blink, corner + low


def eye_opening(ax, y, f, left):
    """Distance in the frontal plane to the slit between the lids (negative inside)."""
    ex = ax - EYE[0]
    y_up, y_low = lid_curves(ex, f, left)
    d = jnp.maximum(y - y_up, y_low - y) * 0.8
    return jnp.maximum(d, jnp.abs(ex) - LID_HALF_WIDTH)


def eyeball(ax, y, z):
    return jnp.sqrt((ax - EYE[0]) ** 2 + (y - EYE[1]) ** 2 + (z - EYE[2]) ** 2 + 1e-9) - EYE_RADIUS


BROW_START, BROW_LENGTH = 1.25, 4.1  # |x| where the eyebrow begins, and how far it reaches


def brow_line(t, f):
    """(|x|, y) of the middle of the eyebrows at t = 0 (nose) … 1 (ear)."""
    return BROW_START + BROW_LENGTH * t, 4.45 + 0.95 * t - 1.25 * t**3.0 + f["brow"]


# ---- whole head ----------------------------------------------------------------------------------------


def ear(ax, y, z):
    c, s = np.cos(0.25), np.sin(0.25)
    px, py, pz = ax - 7.85, y - 0.6, z + 3.6
    qy, qz = c * py - s * pz, s * py + c * pz
    ca, sa = np.cos(0.45), np.sin(0.45)  # stands off the skull towards the back
    qx, qz = ca * px + sa * qz, -sa * px + ca * qz
    outer = ellipsoid(qx, qy - 0.25 * qz, qz, 0.5, 3.0, 1.75)
    bowl = ellipsoid(qx - 0.42, qy - 0.45, qz - 0.15, 0.5, 1.95, 1.0)
    return smooth_max(outer, -bowl, 0.25) * 0.85


def face_layers(x, y, z, f):
    """Distances of all parts of the head but hair, as a dict by name."""
    rest = to_rest(x, y, z, f)
    return layers_at(x, y, z, rest, rest_skin(*rest, f), f)


def layers_at(x, y, z, rest, bare, f):
    """`face_layers` where rest = to_rest(x, y, z) and bare = rest_skin(rest) are known."""
    ax, left = mirror(x), x > 0.0
    rx, ry, rz = rest
    rax = mirror(rx)
    skin = smooth_min(bare, ear(ax, y, z), 0.5)
    # nostrils
    nostril = ellipsoid(rax - 0.78, ry + 1.75 - 0.25 * (rax - 0.78), rz - 5.15, 0.36, 0.42, 0.62)
    skin = smooth_max(skin, -nostril, 0.25)
    # lids: a shell around each eyeball, slit open in front
    shell = jnp.sqrt((ax - EYE[0]) ** 2 + (y - EYE[1]) ** 2 + (z - EYE[2]) ** 2 + 1e-9) - LID_RADIUS
    skin = smooth_min(skin, shell, 0.45)
    slit = eye_opening(ax, y, f, left)
    skin = smooth_max(skin, -jnp.maximum(slit, EYE[2] + 0.1 - z), 0.06)
    cav = cavity(x, y, z, f)
    skin = smooth_max(skin, -cav, 0.12)
    lip_up, lip_low = lips(x, y, z, f)
    t_up, t_low, tongue = teeth(x, y, z, f)
    return {
        "bare": bare, "skin": skin, "lip": jnp.minimum(lip_up, lip_low), "eye": eyeball(ax, y, z),
        "teeth": jnp.minimum(t_up, t_low), "tongue": tongue, "cavity": cav,
    }  # fmt: skip


def hair_region(x, y, z, f):
    """How deep inside the hairline a point lies, cm (negative on the bare skin)."""
    ax = mirror(x)
    face = ellipsoid(x, y + 0.8, z - 6.2, 7.2, f["hairline"], 9.4)
    # above the ears, or behind them down to the nape
    ears = jnp.maximum(y - 0.6 + 0.35 * z - 0.1 * ax, -4.6 - z) * 0.85
    return smooth_min(smooth_min(face, ears, 2.0), y + 6.0 + 9.0 * f["hair_long"], 1.0)


def hair(x, y, z, bare, f):
    """Hair grows out of the skull (distance `bare`): thin at the hairline, full on top, with waves."""
    inside = hair_region(x, y, z, f)
    px = x - f["hair_part"]
    top = smoothstep(3.0, 11.0, y)
    quiff = jnp.exp(-((px / 4.5) ** 2) - ((y - 10.0) / 3.2) ** 2 - ((z - 3.0) / 3.5) ** 2)
    wave = jnp.sin(1.5 * px + 0.5 * y + 0.4 * z) * jnp.sin(0.9 * y + 1.3 * x)
    thick = 0.75 + f["hair_side"] + (0.65 + f["hair_top"]) * top + (0.7 + f["hair_top"]) * quiff + 0.10 * wave
    d = jnp.maximum(bare + 0.15 - (0.15 + thick) * smoothstep(-0.1, 2.3, inside), -0.8 * inside - 0.3)
    # longer hair falls beside and behind the neck
    fall = ellipsoid(x, y + 2.0, z + 5.6, 8.6 + f["hair_side"], 4.0 + 9.0 * f["hair_long"], 5.2) - 0.10 * wave
    return jnp.where(f["hair_long"] > 0.0, smooth_min(d, fall, 1.2), d) * 0.85


def head(x, y, z, f):
    """Distance to the whole head, hair included."""
    p = face_layers(x, y, z, f)
    d = smooth_min(p["skin"], p["lip"], 0.2)
    d = jnp.minimum(jnp.minimum(d, p["eye"]), jnp.minimum(p["teeth"], p["tongue"]))
    return jnp.minimum(d, hair(x, y, z, p["bare"], f))


def solid(x, y, z, f):
    """The head without its details, for light and shadow: skull, nose, jaw, open mouth, hair."""
    rx, ry, rz = to_rest(x, y, z, f)
    d = rest_skin(rx, ry, rz, f)
    full = hair(x, y, z, d, f)
    return jnp.minimum(smooth_max(d, -cavity(x, y, z, f), 0.12), full)


def bound(controls):
    """(centre, radii) of an ellipsoid around the head, hair and open jaw, cm (numpy)."""
    long = float(controls["hair_long"])
    return np.array([0.0, 1.0 - 2.0 * long, -3.0]), np.array([11.0 + long, 17.5 + 2.5 * long, 13.2])
