"""RAD-NeRF and ER-NeRF in float64 straight from a state dict with the originals' names (rad-nerf §3, er-nerf §3, §4).

Slow, one point at a time, from the dossiers' formulas; of the project it uses the test oracles for grids, lattice and
compositing alone.
"""

import itertools
import math

import numpy as np

from tests import oracle

HEAD = {"rad_nerf": dict(levels=16, base=16, finest=2048, log2_entries=16, kind="tiled"),
        "er_nerf": dict(levels=12, base=64, finest=512, log2_entries=14, kind="hash")}  # fmt: skip
TORSO = HEAD["rad_nerf"]
BOX = (-1.0, -0.5, -1.0, 1.0, 0.5, 1.0)
DT = 2 * math.sqrt(3) / 128


def leaky(x):
    return np.where(x > 0, x, 0.02 * x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Original:
    def __init__(self, system: str, state: dict):
        self.system = system
        self.s = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in state.items()}

    def mlp(self, name, x):
        layers = sorted(k for k in self.s if k.startswith(f"{name}.net."))
        for k in layers[:-1]:
            x = np.maximum(self.s[k] @ x, 0)
        return self.s[layers[-1]] @ x

    def conv(self, name, x, stride):
        """[C,T] -> [C',T'], zeros of one on both sides."""
        w, b = self.s[f"{name}.weight"], self.s[f"{name}.bias"]
        x = np.pad(x, ((0, 0), (1, 1)))
        return np.stack([np.einsum("oik,ik->o", w, x[:, t : t + 3]) + b for t in range(0, x.shape[1] - 2, stride)], 1)

    def grid(self, name, x, how):
        table = self.s[f"{name}.embeddings"]
        return oracle.grid_encode((np.asarray(x)[None, None] + 1) / 2, table[None], **how)[0, 0]

    def audio(self, windows):
        """[8,C,T] -> the frame's code."""
        codes = []
        for x in np.asarray(windows, np.float64):
            for i in (0, 2, 4, 6):
                x = leaky(self.conv(f"audio_net.encoder_conv.{i}", x, 2))
            x = leaky(self.s["audio_net.encoder_fc1.0.weight"] @ x[:, 0] + self.s["audio_net.encoder_fc1.0.bias"])
            codes.append(self.s["audio_net.encoder_fc1.2.weight"] @ x + self.s["audio_net.encoder_fc1.2.bias"])
        y = np.stack(codes, 1)
        for i in (0, 2, 4, 6, 8):
            y = leaky(self.conv(f"audio_att_net.attentionConvNet.{i}", y, 1))
        logits = self.s["audio_att_net.attentionNet.0.weight"] @ y[0] + self.s["audio_att_net.attentionNet.0.bias"]
        weights = np.exp(logits - logits.max())
        return np.stack(codes, 1) @ (weights / weights.sum())

    def field(self, x, d, audio, eye):
        """sigma, rgb, plain sums (ambient; for ER-NeRF |v| and w), uncertainty."""
        eyes = [] if eye is None else [np.array([eye])]
        if self.system == "rad_nerf":
            f = self.grid("encoder", x, HEAD["rad_nerf"])
            ambient = np.tanh(self.mlp("ambient_net", np.concatenate([f, audio])))
            h = self.mlp("sigma_net", np.concatenate([f, self.grid("encoder_ambient", ambient, TORSO), *eyes]))
            plain, u = [np.abs(ambient).sum()], 0.0
        else:
            pairs = {"xy": [0, 1], "yz": [1, 2], "xz": [0, 2]}
            f = np.concatenate([self.grid(f"encoder_{p}", x[c], HEAD["er_nerf"]) for p, c in pairs.items()])
            v = self.mlp("aud_ch_att_net", f)
            w = sigmoid(self.mlp("eye_att_net", f)) if eyes else np.zeros(1)
            h = self.mlp("sigma_net", np.concatenate([f, v * audio, *[e * w for e in eyes]]))
            plain, u = [np.linalg.norm(v), w[0]], np.log1p(np.exp(self.mlp("unc_net", f)[0]))
        colour = sigmoid(self.mlp("color_net", np.concatenate([sh4(d), h[1:], self.s["individual_codes"][0]])))
        return np.exp(h[0]), colour if self.system == "rad_nerf" else colour * 1.002 - 0.001, plain, u

    def lattice(self, o, d):
        """(distances of the samples of a ray, whether rounding could change them): the points near + k dt whose cell is
        occupied, at most 16. Rounding matters where a point lies so close to another cell that its bit differs."""
        with np.errstate(divide="ignore"):
            a, b = (np.array(BOX[:3]) - o) / d, (np.array(BOX[3:]) - o) / d
        near, far = max(np.minimum(a, b).max(), 0.05), np.maximum(a, b).min()
        kept, k, unsure = [], 0, abs(near - far) < 1e-5
        while near + k * DT < far and len(kept) < 16:
            x = o + (near + k * DT) * d
            seen = {self.bit(x + 2e-6 * np.array(e)) for e in itertools.product((-1, 0, 1), repeat=3)}
            unsure |= len(seen) > 1 or far - (near + k * DT) < 1e-5
            if self.bit(x):
                kept.append(near + k * DT)
            k += 1
        return np.array(kept), unsure

    def bit(self, x):
        cell = np.clip((0.5 * (np.clip(x, -1, 1) + 1) * 128).astype(int), 0, 127)
        code = oracle.morton(*map(int, cell))
        return int(self.s["density_bitfield"][code // 8] >> (code % 8) & 1)

    def head(self, o, d, audio, eye):
        """(rgb sum, weight sum, whether rounding could change the samples) of one ray."""
        t, unsure = self.lattice(o, d)
        rows = [self.field(o + v * d, d, audio, eye) for v in t]
        n = len(rows)
        sigma, rgb = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]).reshape(n, 3)
        weighted = np.concatenate([rgb, np.array([r[3] for r in rows]).reshape(n, 1)], 1)
        plain = np.array([r[2] for r in rows]).reshape(n, 1 if self.system == "rad_nerf" else 2)
        sums, plain, weight, _ = oracle.composite(sigma, [True] * n, t, weighted, plain, DT)
        self.extras = [*plain, sums[3]]  # of the last ray: the ambient sums, and the uncertainty
        return sums[:3], weight, unsure

    def torso(self, pose, row, column, height, width):
        """(rgb, alpha, whether the map is near its threshold) of one pixel; pose is the loader's 3x4."""
        p = np.array([2 * row / (height - 1) - 1, 2 * column / (width - 1) - 1])
        seen = bilinear(self.s["density_grid_torso"].reshape(128, 128), p)
        limit = min(0.01, self.s["density_grid_torso"].mean())
        if seen <= limit:
            return np.zeros(3), 0.0, abs(seen - limit) < 1e-4
        rad = self.system == "rad_nerf"
        code = euler(pose) if rad else self.anchors(pose)
        given = np.concatenate(
            [
                frequencies(0.8 * p, 10 if rad else 8),
                frequencies(code, 4 if rad else 3),
                self.s["individual_codes_torso"][0],
            ]
        )
        y = np.clip(0.8 * p + self.mlp("torso_deform_net", given), -1, 1)
        h = sigmoid(self.mlp("torso_net", np.concatenate([self.grid("torso_encoder", y, TORSO), given])))
        h = h if rad else h * 1.002 - 0.001
        return h[1:], h[0], abs(seen - limit) < 1e-4

    def anchors(self, pose):
        q = np.linalg.inv(np.vstack([pose, [0, 0, 0, 1]])) @ self.s["anchor_points"].T
        return (q[:2] / q[3] / q[2]).T.reshape(-1)

    def picture(self, pose, intrinsics, row, column, hw, audio, eye, torso, background):
        """(colour of one pixel, whether rounding could change what it consists of)."""
        fx, fy, cx, cy = intrinsics
        d = np.array([(column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, 1.0])
        d = pose[:, :3] @ (d / np.linalg.norm(d))
        rgb, weight, unsure = self.head(pose[:, 3], d, audio, eye)
        behind = np.asarray(background, np.float64)
        if torso:
            colour, alpha, close = self.torso(pose, row, column, *hw)
            behind, unsure = alpha * colour + (1 - alpha) * behind, unsure or close
        return np.clip(rgb + (1 - weight) * behind, 0, 1), unsure


def loader_pose(cam_to_world):
    """Rows y, z, x of a camera-to-world matrix (OpenGL axes) with columns 1 and 2 negated (er-nerf §2 "Pose")."""
    return np.asarray(cam_to_world, np.float64)[[1, 2, 0]] * [1, -1, -1, 1]


def euler(pose):
    r = pose[:, :3]
    angles = [math.atan2(-r[1, 2], r[2, 2]), math.asin(r[0, 2]), math.atan2(-r[0, 1], r[0, 0])]
    return np.array([*angles, *pose[:, 3]])


def frequencies(x, octaves):
    return np.concatenate([x, *[f(2.0**k * x) for k in range(octaves) for f in (np.sin, np.cos)]])


def bilinear(grid, p):
    """grid[col,row] at p = (row, col) in ±1, corners at ±1, zeros outside."""
    r, c = (p + 1) / 2 * (len(grid) - 1)
    i, j = math.floor(r), math.floor(c)
    total = 0.0
    for a, wa in ((i, i + 1 - r), (i + 1, r - i)):
        for b, wb in ((j, j + 1 - c), (j + 1, c - j)):
            if 0 <= a < len(grid) and 0 <= b < len(grid):
                total += wa * wb * grid[b, a]
    return total


def sh4(d):
    x, y, z = d
    return np.array(
        [
            0.28209479, -0.48860251 * y, 0.48860251 * z, -0.48860251 * x, 1.09254843 * x * y, -1.09254843 * y * z,
            0.94617470 * z * z - 0.31539157, -1.09254843 * x * z, 0.54627422 * (x * x - y * y),
            0.59004359 * y * (y * y - 3 * x * x), 2.89061144 * x * y * z, 0.45704580 * y * (1 - 5 * z * z),
            0.37317633 * z * (5 * z * z - 3), 0.45704580 * x * (1 - 5 * z * z), 1.44530572 * z * (x * x - y * y),
            0.59004359 * x * (3 * y * y - x * x),
        ]
    )  # fmt: skip
