"""What an avatar that draws a mesh is trained by (dossier dyntet §5): terms, their weights, and schedules by step.

Terms are scalars, unweighted; `WEIGHTS` has the factors that do not change. Frames B, pictures [B,H,W,C] in 0…1.
All are differentiable in predictions; masks, boxes and targets are constants.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from tkjax.types import Array

# Factors of the terms; those of `sign`, `near` and `moved`, and `occlusion` are functions of the step, below.
WEIGHTS = {
    "image": 1.0, "silhouette": 10.0, "perceptual": 0.1, "region": 0.1, "elasticity": 100.0, "depth": 1.0,
    "light": 0.005,
}  # fmt: skip
REGION_PERCEPTUAL = 0.1  # of the perceptual distance beside the region's squared error
DILATION_PX = 9  # of the head's mask
NEAR_STD = 0.05  # of the distances of points around the 3DMM's surface, dm
LARGEST_DISTANCE = 0.1  # at which distances are clamped, dm
LEAST_SCALE = 0.02  # of a vertex's movement, dm
GUIDED_STEPS, GUIDED_WEIGHT = 5000, 100.0  # `near` and `moved`: the 3DMM guides the first steps alone
SIGN_WEIGHT, SIGN_WEIGHT_END, SIGN_SHARE = 0.2, 0.01, 0.25  # `sign` falls in that share of all steps
OCCLUSION_WEIGHT, OCCLUSION_STEPS = 0.001, 500
LR_DECAY, LR_END = 0.0002, 0.01  # decades a step, least factor
BOX_PAD_PX = 10
SMALLEST_CROP = 32  # side that a perceptual network needs


# ------------------------------------------------ schedules


def rate_factor(step: Float[Array, ""] | Int[Array, ""] | int) -> Float[Array, ""]:
    """max(0.01, 10^(-0.0002 step)): of both learning rates (1e-3); 0.01 from step 10 000 on."""
    return jnp.maximum(LR_END, 10.0 ** (-LR_DECAY * step))


def sign_weight(step: Float[Array, ""] | Int[Array, ""] | int, steps: int) -> Float[Array, ""]:
    """From 0.2 to 0.01 in a straight line over the first quarter of `steps`, then 0.01."""
    progress = jnp.minimum(step / (SIGN_SHARE * steps), 1.0)
    return SIGN_WEIGHT - (SIGN_WEIGHT - SIGN_WEIGHT_END) * progress


def guided_weight(step: Float[Array, ""] | Int[Array, ""] | int) -> Float[Array, ""]:
    """100 for step < 5000, else 0."""
    return jnp.where(jnp.asarray(step) < GUIDED_STEPS, GUIDED_WEIGHT, 0.0)


def occlusion_weight(step: Float[Array, ""] | Int[Array, ""] | int) -> Float[Array, ""]:
    """0.001 min(1, step / 500)."""
    return OCCLUSION_WEIGHT * jnp.minimum(1.0, jnp.asarray(step) / OCCLUSION_STEPS)


# ------------------------------------------------ pictures


def dilate(mask: Float[Array, "B H W 1"], radius: int = DILATION_PX) -> Float[Array, "B H W 1"]:
    """1 where any pixel of the square of 2 radius + 1 pixels around is > 0, else 0; no gradient."""
    most, side = jnp.asarray(mask > 0, jnp.float32), 2 * radius + 1
    for window in ((1, side, 1, 1), (1, 1, side, 1)):  # rows, then columns: 38 pixels instead of 361
        most = jax.lax.reduce_window(most, 0.0, jax.lax.max, window, (1, 1, 1, 1), "SAME")
    return jax.lax.stop_gradient(most)


def image_term(
    prediction: Float[Array, "B H W 3"], target: Float[Array, "B H W 3"], mask: Float[Array, "B H W 1"]
) -> Float[Array, ""]:
    """Mean over frames of sum_px M sum_rgb (p - t)^2 / sum_px M, with M the `dilate`d mask of the head; a frame whose
    mask is empty counts 0."""
    squares = jnp.sum(jnp.square(prediction - target) * mask, (1, 2, 3))
    return jnp.mean(squares / jnp.maximum(jnp.sum(mask, (1, 2, 3)), 1.0))


def silhouette_term(alpha: Float[Array, "B H W 1"], mask: Float[Array, "B H W 1"]) -> Float[Array, ""]:
    """Mean over pixels of (alpha - mask)^2."""
    return jnp.mean(jnp.square(alpha - mask))


def occlusion_term(occlusion: Float[Array, "B H W 1"], alpha: Float[Array, "B H W 1"]) -> Float[Array, ""]:
    """Mean over all pixels of o alpha."""
    return jnp.mean(occlusion * alpha)


def light_term(cubemap: Float[Array, "6 S S 3"]) -> Float[Array, ""]:
    """Mean |c - mean_rgb c|: light is white until the pictures say otherwise."""
    return jnp.mean(jnp.abs(cubemap - jnp.mean(cubemap, -1, keepdims=True)))


# ------------------------------------------------ the surface


def near_points(
    key: jax.Array, positions: Float[Array, "N 3"], normals: Float[Array, "N 3"]
) -> tuple[Float[Array, "N 3"], Float[Array, " N"]]:
    """(X + d n, d) with d from N(0, 0.05^2) for each vertex of the 3DMM's neutral: points whose distance is known."""
    d = NEAR_STD * jax.random.normal(key, positions.shape[:1])
    return positions + d[:, None] * normals, d


def near_term(sdf: Float[Array, " N"], target: Float[Array, " N"]) -> Float[Array, ""]:
    """Mean squared difference of the distances clamped to ±0.1; no gradient beyond."""
    a, b = (jnp.clip(x, -LARGEST_DISTANCE, LARGEST_DISTANCE) for x in (sdf, target))
    return jnp.mean(jnp.square(a - b))


def moved_term(displacement: Float[Array, "B N 3"], target: Float[Array, "B N 3"]) -> Float[Array, ""]:
    """Mean squared difference to the 3DMM's movement X_exp - X_neutral, the displacement taken at X_exp."""
    return jnp.mean(jnp.square(displacement - target))


def elasticity_term(elasticity: Float[Array, " N"], scale: Float[Array, " N"]) -> Float[Array, ""]:
    """Mean relu(elasticity - scale) at the `near_points`; scale: `vertex_scale` of their vertices."""
    return jnp.mean(jax.nn.relu(elasticity - scale))


def vertex_scale(movement: Float[np.ndarray, "t N 3"]) -> Float[np.ndarray, " N"]:
    """How far each vertex of the 3DMM moves from its neutral in t frames, at least 0.02 (dossier dyntet §2.5)."""
    return np.maximum(np.linalg.norm(movement, axis=-1).max(0), LEAST_SCALE)


def depth_term(z: Float[Array, "B M"], used: Float[Array, " M"], target_z: Float[Array, "B N"]) -> Float[Array, ""]:
    """Mean over frames of relu(max z of the frame's mesh - max z of the batch's 3DMM), in model space.

    used: 1 for slots with a vertex, 0 for others; a mesh without any counts 0."""
    foremost = jnp.max(jnp.where(used > 0, z, -jnp.inf), -1)
    return jnp.mean(jax.nn.relu(foremost - jnp.max(target_z)))


def sign_term(sdf_a: Float[Array, " E"], sdf_b: Float[Array, " E"]) -> Float[Array, ""]:
    """BCE(s_a, [s_b > 0]) + BCE(s_b, [s_a > 0]) with logits, means over the edges whose ends differ in sign, 0 without.

    Pulls both ends to one sign, so that surfaces that nothing needs go away. Pairs of equal sign are ignored.
    """
    out_a, out_b = sdf_a > 0, sdf_b > 0
    differs = out_a != out_b
    entropy = jax.nn.softplus(sdf_a) - sdf_a * out_b + jax.nn.softplus(sdf_b) - sdf_b * out_a
    return jnp.sum(jnp.where(differs, entropy, 0.0)) / jnp.maximum(jnp.sum(differs), 1)


# ------------------------------------------------ regions


def landmark_box(points_px: Float[np.ndarray, "N 2"], scale: float = 1.0) -> Float[np.ndarray, "4"]:
    """(x0, y0, x1, y1) around landmarks, whole pixels, 10 wider at each side, then scaled to the size that is drawn
    (dossier dyntet §2.5)."""
    low, high = np.floor(points_px.min(0)) - BOX_PAD_PX, np.floor(points_px.max(0)) + BOX_PAD_PX
    return np.concatenate([low, high]) * scale


def box_crops(
    pictures: Float[Array, "B H W C"], boxes_px: Float[Array, "B K 4"], size: int
) -> Float[Array, "B K S S C"]:
    """Whole boxes (x0, y0, x1, y1), half open, each resampled to size x size: bilinear at the centres of its cells.

    Beyond the picture its outermost pixels go on. Differentiable in the pictures.
    """
    height, width = pictures.shape[1:3]
    share = (jnp.arange(size) + 0.5) / size

    def axis(low, high, length):
        """Weights [B,K,S,length] of the pixels of one axis."""
        at = low[..., None] + (high - low)[..., None] * share - 0.5
        at = jnp.clip(at, 0.0, length - 1.0)
        return jnp.maximum(1.0 - jnp.abs(at[..., None] - jnp.arange(length)), 0.0)

    x0, y0, x1, y1 = (boxes_px[..., k] for k in range(4))
    rows, columns = axis(y0, y1, height), axis(x0, x1, width)
    return jnp.einsum("bksy,bktx,byxc->bkstc", rows, columns, pictures, precision=jax.lax.Precision.HIGHEST)


def half_sizes(boxes_px: Int[np.ndarray, "*N 4"]) -> tuple[int, int]:
    """(height, width) of `quarter_crops` for boxes (x0, y0, x1, y1): the largest (x1 - x0 + 1) // 2. The original takes
    the maximum of a batch; over a whole clip it is static."""
    boxes = np.asarray(boxes_px).reshape(-1, 4)
    width, height = (int(((boxes[:, k + 2] - boxes[:, k] + 1) // 2).max()) for k in (0, 1))
    return height, width


def quarter_crops(
    pictures: Float[Array, "B H W C"], boxes_px: Int[Array, "B K 4"], size: tuple[int, int]
) -> Float[Array, "B K h w C"]:
    """The original's crops, for parity: the upper left quarter of each box, from (x0, y0) on, as its ROI max pooling of
    [x0, y0, x0 + w, y0 + h] to h x w gives it: out[i, j] = max of the 2x2 pixels from (y0 + i, x0 + j) on.

    size: (h, w), see `half_sizes`. What lies beyond the picture is left out of the maximum; 0 where all does.
    Differentiable in the pictures.
    """
    height, width = pictures.shape[1:3]
    h, w = size
    rows = boxes_px[..., 1, None] + jnp.arange(h + 1)  # [B,K,h+1]
    columns = boxes_px[..., 0, None] + jnp.arange(w + 1)
    frame = jnp.arange(pictures.shape[0])[:, None, None, None]
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
    taken = pictures[frame, jnp.clip(rows, 0, height - 1)[..., :, None], jnp.clip(columns, 0, width - 1)[..., None, :]]
    taken = jnp.where(inside[..., None], taken, -jnp.inf)
    four = [taken[:, :, a : a + h, b : b + w] for a in (0, 1) for b in (0, 1)]
    most = jnp.max(jnp.stack(four), 0)
    return jnp.where(jnp.isfinite(most), most, 0.0)


def padding(n: int) -> int:
    """Zeros at each side of a quarter crop of n pixels before the perceptual distance: max(0, (T - n + 1) // 2) with
    T = 2^max(floor(log2(n - 1)) + 1, 5)."""
    target = max(1 << int(n - 1).bit_length(), SMALLEST_CROP)
    return max(0, (target - n + 1) // 2)


def padded(crops: Float[Array, "B K h w C"]) -> Float[Array, "B K p q C"]:
    """Quarter crops with zeros around, see `padding`."""
    a, b = (padding(n) for n in crops.shape[2:4])
    return jnp.pad(crops, ((0, 0), (0, 0), (a, a), (b, b), (0, 0)))


def region_term(prediction: Float[Array, "B K h w C"], target: Float[Array, "B K h w C"]) -> Float[Array, ""]:
    """Sum over the K regions of the mean squared difference of crops. The perceptual distance of the same crops (of
    quarter crops: `padded`) is added by the caller, times 0.1."""
    return jnp.sum(jnp.mean(jnp.square(prediction - target), (0, 2, 3, 4)))
