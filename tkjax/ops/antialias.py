"""Silhouettes that have gradients: pixels on both sides of one are blended by the place where it passes between them
(dyntet dossier §10.3).

Two pixels side by side, or one above the other, with different faces are a pair (P0, P1), P0 at the lower column or
row. The pair looks at one face T: that of the pixel that is covered, or, where both are, the nearer (P1's where zw is
equal); s = 1 if it is P0's, else -1. In pixels relative to the centre of T's pixel, with x the axis of the pair, T's
vertices are at (x_k, y_k). An edge of T from vertex 1 to vertex 2 that passes the axis (one of y_1 < 0, y_2 < 0 holds)
does so at
  xi = (x_1 y_2 - y_1 x_2) / (y_2 - y_1).
Of those edges the one with the largest s xi counts, if |y_2 - y_1| >= |x_2 - x_1| and it is a silhouette: a boundary
(also where the vertex across it is not one of V, or not finite), or the vertex across it lies on the same side as T's
third. If -1/16 < s xi < 17/16, then with d = s xi clamped to [0,1]
  alpha = s (1/2 - d);  alpha > 0: out(P0) += alpha (c(P1) - c(P0)),  else out(P1) += alpha (c(P1) - c(P0)).
A pixel sums what its four pairs give. A silhouette of a face that no pixel centre meets is not seen.

Gradients. To colours those of the formula. To clip through xi, alpha = s/2 - xi where 0 < d < 1, with
dy = y_2 - y_1 + copysign(1e-3, y_2 - y_1):
  dxi/dx_1 = y_2 / dy, dxi/dx_2 = -y_1 / dy, dxi/dy_1 = (xi - x_2) / dy, dxi/dy_2 = (x_1 - xi) / dy.
Faces with a vertex at W <= 0 are left out. Float32 throughout.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tkjax.ops import dispatch
from tkjax.ops.opposite_vertices import opposite_vertices
from tkjax.ops.rasterize import Raster, check_mesh, over_batch

BEYOND = 1.0 / 16  # how far outside of its pair a crossing still counts, in pixels
EPSILON = 1e-3  # on |dy| in gradients


def antialias(
    colours: Float[Array, "*B H W C"],
    raster: Raster,
    clip: Float[Array, "*A V 4"],
    faces: Int[Array, "F 3"],
    opposite: Int[Array, "_ 3"] | None = None,
    *,
    backend: str | None = None,
) -> Float[Array, "*B H W C"]:
    """Colours [H,W,C], float32, with blended silhouettes; raster is what `rasterize` gave for clip and faces.

    opposite: what `opposite_vertices(faces)` gives, which is what None stands for; hand it over where faces do not
    change. A leading axis of colours, raster and clip is a batch. Differentiable with respect to colours and clip.
    ValueError for other types than float32 and int32 and for shapes that do not fit.
    """
    check_mesh("antialias", clip, faces)
    if colours.dtype != "float32":
        raise ValueError(f"antialias: colours must be float32, got {colours.dtype}")
    batch = raster.face.shape[:-2]
    if len(batch) > 1 or clip.shape[:-2] != batch or colours.shape[:-1] != raster.face.shape:
        raise ValueError(
            f"antialias: colours {colours.shape}, face {raster.face.shape} and clip {clip.shape} do not fit together; "
            "expected [H,W,C], [H,W] and [V,4], or all with the same leading axis"
        )
    if opposite is None:
        opposite = opposite_vertices(faces)
    if opposite.shape != faces.shape or opposite.dtype != "int32":
        raise ValueError(f"antialias: opposite must be int32 {faces.shape}, got {opposite.dtype} {opposite.shape}")
    module = dispatch.resolve("antialias", backend)
    with jax.named_scope(f"antialias.{module.__name__.split('.')[-2]}"):
        if 0 in (*colours.shape, *clip.shape, *faces.shape):
            return colours
        alphas = over_batch(module.forward, (bool(batch), bool(batch), bool(batch), False, False))
        right, below = alphas(clip, raster.face, jax.lax.stop_gradient(raster.zw), faces, opposite)
        return colours + _moved(colours, right, -2) + _moved(colours, below, -3)


def _moved(colours, alpha, axis: int):
    """What pairs along an axis of the colours add to both of their pixels; alpha [H,W] stands at P0."""
    before = jax.lax.slice_in_dim(colours, 0, colours.shape[axis] - 1, axis=axis)
    after = jax.lax.slice_in_dim(colours, 1, None, axis=axis)
    alpha = jax.lax.slice_in_dim(alpha[..., None], 0, colours.shape[axis] - 1, axis=axis)
    blend = alpha * (after - before)
    to_before, to_after = jnp.where(alpha > 0, blend, 0.0), jnp.where(alpha > 0, 0.0, blend)
    pad = [(0, 0)] * colours.ndim
    pad[axis] = (0, 1)
    first = jnp.pad(to_before, pad)
    pad[axis] = (1, 0)
    return first + jnp.pad(to_after, pad)


def differentiable(find: Callable, pull: Callable) -> Callable:
    """The alphas of a back end's kernels, with gradients.

    find(clip, face, zw, faces, opposite) -> alpha of pairs to the right and to below, [H,W] each, 0 where there is no
    pair; pull(clip, face, zw, faces, opposite, g_right, g_below) -> gradient to clip.
    """
    gradients = dispatch.once_differentiable("antialias")(pull)
    found = jax.custom_vjp(find)

    def backward(kept, g):
        return gradients(*kept, *g), None, None, None, None

    found.defvjp(lambda *args: (found(*args), args), backward)
    return found
