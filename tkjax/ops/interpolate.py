"""Values at vertices as values at pixels, by the barycentric coordinates of `rasterize` (dyntet dossier §10.2).

  out = u A_0 + v A_1 + (1 - u - v) A_2, with A_k = attributes of the k-th vertex of the pixel's face; 0 for background.
Gradients, with g the cotangent of a pixel: to A_k its coordinate times g, to u <g, A_0 - A_2>, to v <g, A_1 - A_2>.
Sums are float32. Perspective-correct, since u and v are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tkjax.ops import dispatch
from tkjax.ops.rasterize import Raster, over_batch


def interpolate(
    attributes: Float[Array, "*A V C"], raster: Raster, faces: Int[Array, "F 3"], *, backend: str | None = None
) -> Float[Array, "*B H W C"]:
    """Pixels [H,W,C] of attributes [V,C], float32, over what `rasterize` gave for the same faces.

    raster may be a batch [B,H,W]; attributes are then [V,C], the same for all, or [B,V,C]. Differentiable with respect
    to attributes and raster.uv. ValueError for other types than float32 and int32 and for shapes that do not fit.
    """
    if attributes.dtype != "float32" or raster.uv.dtype != "float32":
        raise ValueError(f"interpolate: attributes and uv must be float32, got {attributes.dtype}, {raster.uv.dtype}")
    if faces.dtype != "int32" or raster.face.dtype != "int32":
        raise ValueError(f"interpolate: faces must be int32, got {faces.dtype} and {raster.face.dtype}")
    batch = raster.face.shape[:-2]
    if len(batch) > 1 or attributes.shape[:-2] not in ((), batch) or raster.uv.shape != (*raster.face.shape, 2):
        raise ValueError(
            f"interpolate: attributes {attributes.shape}, face {raster.face.shape} and uv {raster.uv.shape} do not fit "
            "together; expected [V,C], [H,W] and [H,W,2], all or the last two with the same leading axis"
        )
    module = dispatch.resolve("interpolate", backend)
    with jax.named_scope(f"interpolate.{module.__name__.split('.')[-2]}"):
        if 0 in (*attributes.shape, *raster.face.shape, *faces.shape):
            return jnp.zeros((*raster.face.shape, attributes.shape[-1]))
        call = over_batch(module.forward, (attributes.ndim == 3, bool(batch), bool(batch), False))
        return call(attributes, raster.face, raster.uv, faces)


def differentiable(mix: Callable, pull: Callable) -> Callable:
    """`interpolate` of a back end's kernels, with gradients.

    mix(attributes, face, uv, faces) -> [H,W,C]; pull(attributes, face, uv, faces, g) -> gradients to attributes and uv.
    """
    gradients = dispatch.once_differentiable("interpolate")(pull)
    mixed = jax.custom_vjp(mix)

    def backward(kept, g):
        to_attributes, to_uv = gradients(*kept, g)
        return to_attributes, None, to_uv, None

    mixed.defvjp(lambda *args: (mixed(*args), args), backward)
    return mixed
