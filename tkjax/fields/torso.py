"""The 2-D torso of RAD-NeRF and ER-NeRF: a picture that deforms with the head pose (rad-nerf §3.4, er-nerf §3 "Torso").

At a pixel p = (row, col) in [-1,1]^2, p_n = 2 k / (n - 1) - 1 for pixel k of n, with the frame's pose code and
appearance code:
  x = shrink p,  c = [freq(x), freq(pose), code],  y = clip(x + deform(c), -1, 1),
  alpha, rgb = sigmoid(colour([grid(y), c])).
A map of side^2 running maxima of alpha over poses tells which pixels are worth evaluating: those where it exceeds
min(threshold, its mean), sampled bilinearly. The rest is transparent.

Names of the originals' state dict: torso_encoder.embeddings = params grid/tables[0], torso_deform_net.net.K.weight =
deform/kernel_K transposed, torso_net.net.K.weight = colour/kernel_K transposed, individual_codes_torso = codes,
anchor_points = anchors (ER-NeRF); buffer density_grid_torso = state alpha, with the same flat index.

Decided (code = the released code is followed, neither = ours):
- audio is passed to RAD-NeRF's torso and never used: left out (neither);
- the bilinear lookup puts the first and last cell on the picture's edge (align_corners), while the refresh draws
  alpha at cell centres, half a cell off: kept (code), the 5x5 maximum covers it;
- the pose's translation (about 3) and angles enter the sines unscaled (code); sines are exact, not fast ones (neither);
- an evaluation always uses appearance code 0 (code);
- in training pixels below the threshold are transparent too (code). The originals refresh their zero map before
  step 0; here the map starts above the threshold, so that everything is evaluated until a refresh says otherwise.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from tkjax.cameras import NGP_FROM_WORLD
from tkjax.fields.program import groups
from tkjax.ops import GridSpec, Program, ProgramBuilder, field, freq_encode
from tkjax.ops.packing import pack, unpack
from tkjax.types import Array

GRID = GridSpec(dims=2, levels=16, features=2, base=16, finest=2048, log2_entries=16, kind="tiled")
POSE_CHANNELS = 6  # of both systems' codes
# Three homogeneous points of the originals' world (er-nerf §3, torso 1).
ANCHORS = ((0.01, 0.01, 0.1, 1.0), (-0.1, -0.1, 0.1, 1.0), (0.1, -0.1, 0.1, 1.0))
# alpha, rgb = scale sigmoid + shift; ER-NeRF's may leave [0, 1] by 0.001 (rad-nerf §3.4, er-nerf §3, torso 4).
SIGMOID = {"euler": (1.0, 0.0), "anchors": (1.002, -0.001)}
CODE_STD = 0.1  # appearance codes start in N(0, 0.1^2)
DECAY = 0.95  # of the map per refresh
POOL = 5  # side of the maximum over neighbouring cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torso:
    """The layer of one system. RAD-NeRF: pose "euler", 10 and 4 octaves, deform_hidden 64; ER-NeRF: pose "anchors",
    8 and 3 octaves, deform_hidden 32. `height`, `width` are those of the dataset's pictures in pixels."""

    pose: str
    xy_octaves: int
    pose_octaves: int
    deform_hidden: int
    height: int
    width: int
    code_rows: int
    colour_hidden: int = 32
    code_dim: int = 8
    shrink: float = 0.8
    spec: GridSpec = GRID
    side: int = 128
    threshold: float = 0.01
    chunk: int = 2048

    def __post_init__(self):
        if self.pose not in SIGMOID:
            raise ValueError(f"torso pose {self.pose!r} is unknown; choose {' or '.join(SIGMOID)}")

    @functools.cached_property
    def program(self) -> Program:
        """The field at points [N,2] = shrunk (row, col); rows "pose" (frequency encoded) and "code"; outputs alpha
        and rgb (not premultiplied)."""
        return self._program(False)

    @functools.cached_property
    def picture_program(self) -> Program:
        """The same for pixels of one frame: what pose and code add to the first layers is in their biases."""
        return self._program(True)

    def _program(self, folded: bool) -> Program:
        p = ProgramBuilder(f"torso_{self.pose}{'_picture' if folded else ''}", dims=2)
        context = [p.freq(p.points, self.xy_octaves)]
        if not folded:
            pose = p.row("pose", POSE_CHANNELS * (1 + 2 * self.pose_octaves))
            context += [pose, p.row("code", self.code_dim)]
        size, hidden = sum(v.channels for v in context), self.deform_hidden
        moved = p.add(p.points, p.mlp("deform", context, (size, hidden, hidden, 2), bias=folded))
        features = p.grid("grid", self.spec, p.clip(moved, -1.0, 1.0))
        hidden = self.colour_hidden
        out = p.mlp("colour", [features, *context], (features.channels + size, hidden, hidden, 4), bias=folded)
        out = p.act(out, "sigmoid")
        if SIGMOID[self.pose] != (1.0, 0.0):
            out = p.affine(out, *SIGMOID[self.pose])
        return p.build(alpha=out[:1], rgb=out[1:])

    def _folded(self, params: dict, rows: dict[str, Float[Array, "1 C"]]) -> dict:
        """Parameters of `picture_program` for one frame: pose and code are the last inputs of both first layers."""
        values = jnp.concatenate([rows["pose"], rows["code"]], -1)[0]
        out = {"grid": params["grid"]}
        for name in ("deform", "colour"):
            kernels = dict(params[name])
            first, kept = kernels["kernel_0"], len(kernels["kernel_0"]) - len(values)
            biases = {k.replace("kernel", "bias"): jnp.zeros(v.shape[1], v.dtype) for k, v in kernels.items()}
            bias = jnp.matmul(values, first[kept:], precision=jax.lax.Precision.HIGHEST)
            out[name] = {**kernels, **biases, "kernel_0": first[:kept], "bias_0": bias}
        return out

    def init(self, key: jax.Array) -> dict:
        """Trained parameters: "grid", "deform", "colour", "codes" [code_rows, code_dim], perhaps "anchors" [3,4]."""
        modules = groups(self.program)
        keys = dict(zip([*modules, "codes"], jax.random.split(key, len(modules) + 1)))
        params = {name: module.init(keys[name])["params"] for name, module in modules.items()}
        params["codes"] = CODE_STD * jax.random.normal(keys["codes"], (self.code_rows, self.code_dim))
        if self.pose == "anchors":
            params["anchors"] = jnp.array(ANCHORS, jnp.float32)
        return params

    def init_state(self) -> dict:
        """{"alpha": [side^2] float32}, index side * col + row: everything is evaluated before the first refresh."""
        return {"alpha": jnp.full(self.side**2, 2 * self.threshold, jnp.float32)}

    def pose_code(self, params: dict, cam_to_world: Float[Array, "B 4 4"]) -> Float[Array, "B 6"]:
        """The code of contract poses: `euler_code`, or `anchor_code` with the trained anchors."""
        pose = loader_pose(cam_to_world)
        return euler_code(pose) if self.pose == "euler" else anchor_code(pose, params["anchors"])

    def rows(self, params: dict, cam_to_world, frame) -> dict[str, Float[Array, "B C"]]:
        """What is constant over a frame, as the program reads it."""
        pose = freq_encode(self.pose_code(params, cam_to_world), self.pose_octaves)
        return {"pose": pose, "code": params["codes"][frame]}

    def coordinates(self, pixels_px: Float[Array, "*N 2"]) -> Float[Array, "*N 2"]:
        """(row, col) in [-1,1], not shrunk, of pixel positions (x, y); the centres of the outermost pixels are ±1."""
        size = jnp.array([max(self.height - 1, 1), max(self.width - 1, 1)], jnp.float32)
        return 2.0 * (pixels_px[..., ::-1] - 0.5) / size - 1.0

    def occupied(self, state: dict, coordinates: Float[Array, "*N 2"]) -> Bool[Array, "*N"]:
        """Whether a pixel is worth evaluating."""
        limit = jnp.minimum(jnp.mean(state["alpha"]), self.threshold)
        return lookup(state["alpha"].reshape(self.side, self.side), coordinates) > limit

    def draw(
        self,
        params: dict,
        state: dict,
        cam_to_world: Float[Array, "B 4 4"],
        frame: Int[Array, " B"],
        pixels_px: Float[Array, "B R 2"],
        *,
        train: bool,
        wanted: Bool[Array, "B R"] | None = None,
    ) -> tuple[Float[Array, "B R 3"], Float[Array, "B R 1"], dict]:
        """Premultiplied rgb and alpha at pixel positions of frames with contract poses; zero where not evaluated.

        train: each frame has its own appearance code; else all have that of row 0. wanted: pixels that may count at
        all (what an opaque head covers does not); None: all. The dict holds the mask "evaluated" [B,R].
        """
        b, r = pixels_px.shape[:2]
        at = self.coordinates(pixels_px)
        mask = self.occupied(state, at)
        if wanted is not None:
            mask &= wanted
        rows = self.rows(params, cam_to_world, frame if train else jnp.zeros_like(frame))
        packing = pack(mask.reshape(-1), 1)
        points = self.shrink * at.reshape(-1, 2)[packing.ray]
        if b == 1 and not train:
            folded = self._folded(params, rows)
            packed = field(self.picture_program, points, {}, folded, total=packing.total, chunk=self.chunk)
        else:
            index = None if b == 1 else packing.ray // r
            rows = {name: (values, index) for name, values in rows.items()}
            packed = field(self.program, points, rows, params, total=packing.total, chunk=self.chunk)
        out = unpack(packed, packing, mask.reshape(-1, 1)).reshape(b, r, 4)
        alpha = out[..., :1]
        return alpha * out[..., 1:], alpha, {"evaluated": mask}

    def refresh(
        self, params: dict, state: dict, cam_to_world: Float[Array, "1 4 4"], frame: Int[Array, "1"], key: jax.Array
    ) -> dict:
        """The map after one more pose and code: alpha at a random point of every cell, maximum of 5x5 cells, running
        maximum that decays (rad-nerf §4.2)."""
        cell = jnp.arange(self.side**2)
        cells = jnp.stack([cell % self.side, cell // self.side], -1)  # (row, col), row fastest
        centres = (2.0 * cells + 1.0) / self.side - 1.0
        at = centres + jax.random.uniform(key, centres.shape, minval=-1.0, maxval=1.0) / self.side
        rows = {name: (values, None) for name, values in self.rows(params, cam_to_world, frame).items()}
        program = self.program.select("alpha")
        alpha = field(program, self.shrink * at, rows, params, chunk=self.chunk).reshape(self.side, self.side)
        alpha = jax.lax.reduce_window(alpha, -jnp.inf, jax.lax.max, (POOL, POOL), (1, 1), "SAME")
        return {"alpha": jnp.maximum(DECAY * state["alpha"], alpha.reshape(-1))}


def loader_pose(cam_to_world: Float[Array, "B 4 4"]) -> Float[Array, "B 3 4"]:
    """`cameras.to_ngp_pose` of traced poses, without the last row: rows permuted, OpenCV columns."""
    return cam_to_world[:, list(NGP_FROM_WORLD)] * jnp.array([1.0, -1.0, -1.0, 1.0])


def euler_code(pose: Float[Array, "B 3 4"]) -> Float[Array, "B 6"]:
    """XYZ Euler angles in radians and translation of the originals' loader pose (rad-nerf §2.4)."""
    a = jnp.arctan2(-pose[:, 1, 2], pose[:, 2, 2])
    b = jnp.arcsin(jnp.clip(pose[:, 0, 2], -1.0, 1.0))  # rounding of a rotation may pass 1
    c = jnp.arctan2(-pose[:, 0, 1], pose[:, 0, 0])
    return jnp.concatenate([jnp.stack([a, b, c], -1), pose[..., 3]], -1)


def anchor_code(pose: Float[Array, "B 3 4"], anchors: Float[Array, "3 4"]) -> Float[Array, "B 6"]:
    """(q_x / q_w / q_z, q_y / q_w / q_z) of q = pose^-1 a, anchor by anchor (er-nerf §3, torso 1): not a projection,
    since q_z is not divided by q_w. The pose is the originals' loader pose, a rotation and a translation."""
    world = anchors[:, :3] - pose[:, None, :, 3] * anchors[:, 3:]
    q = jnp.einsum("bji,baj->bai", pose[..., :3], world, precision=jax.lax.Precision.HIGHEST)
    return (q[..., :2] / anchors[:, 3:] / q[..., 2:]).reshape(pose.shape[0], POSE_CHANNELS)


def lookup(grid: Float[Array, "S S"], coordinates: Float[Array, "*N 2"]) -> Float[Array, "*N"]:
    """Bilinear samples of grid[col, row] at (row, col), whose outermost cells are at ±1; zero beyond them."""
    side = grid.shape[0]
    padded = jnp.pad(grid, 1)
    # The four corners of every cell side by side: one gather per pixel.
    corners = [padded[i : i + side + 1, j : j + side + 1] for i in (0, 1) for j in (0, 1)]
    corners = jnp.stack(corners, -1).reshape(-1, 4)
    at = jnp.clip((coordinates + 1.0) * (0.5 * (side - 1)), -1.0, side)
    cell = jnp.clip(jnp.floor(at), -1.0, side - 1)
    row, col = jnp.moveaxis(at - cell, -1, 0)
    first, second = jnp.moveaxis(cell.astype(jnp.int32) + 1, -1, 0)
    index = first + (side + 1) * second
    near, far = (1.0 - col, col)
    weights = jnp.stack([near * (1.0 - row), near * row, far * (1.0 - row), far * row], -1)
    return jnp.sum(corners[index] * weights, -1)
