"""A tree of arrays as {path: leaf}, so that a listing explains itself and what does not fit can be named."""

from collections.abc import Mapping
from typing import Any

import jax

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
    """{path of the leaf: leaf}, paths joined by '/'; a tree that is one leaf has the path 'value'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf for path, leaf in leaves}


def unflatten(like: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """The inverse of `flatten` for a tree built like `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[path] for path in flatten(like)])
