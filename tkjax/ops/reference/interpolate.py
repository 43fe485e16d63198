"""Reference interpolate: gathers of corners, which JAX differentiates."""

import jax.numpy as jnp


def forward(attributes, face, uv, faces):
    """[V,C], [H,W], [H,W,2], [F,3] -> [H,W,C]."""
    corners = jnp.clip(faces[jnp.maximum(face - 1, 0)], 0, attributes.shape[0] - 1)
    u, v = uv[..., :1], uv[..., 1:]
    parts = [jnp.where((face > 0)[..., None], attributes[corners[..., k]], 0.0) for k in range(3)]
    return u * parts[0] + v * parts[1] + (1.0 - u - v) * parts[2]
