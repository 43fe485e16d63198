"""What tests ask of a surface in float64."""

import functools
from collections import Counter

import jax
import numpy as np

from tkjax.mesh.marching import Budget, edge_weights, extract, interpolate

SMALL = Budget(4096, 8192, 4096)


@functools.partial(jax.jit, static_argnums=2)
def build(sdf, grid, budget=SMALL):
    """(positions, weights, topology)"""
    topology = extract(sdf, grid, budget)
    weights = edge_weights(sdf, topology)
    return interpolate(grid.vertices, topology.edges, weights), weights, topology


def surface(grid, sdf, budget=SMALL):
    """(positions, faces that are used, topology)"""
    positions, _, topology = build(sdf, grid, budget)
    faces = np.asarray(topology.faces)
    return np.asarray(positions, np.float64), faces[faces[:, 0] != budget.vertices - 1], topology


def directed_edges(faces):
    return Counter((int(f[k]), int(f[(k + 1) % 3])) for f in faces for k in range(3))


def cross(positions, faces):
    """Twice the area times the normal of each face."""
    p = positions[faces]
    return np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])


def volume(positions, faces):
    return np.einsum("ij,ij->", positions[faces[:, 0]], cross(positions, faces)) / 6


def area(positions, faces):
    return np.linalg.norm(cross(positions, faces), axis=1).sum() / 2
