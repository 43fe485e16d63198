"""tkjax: talking portraits in JAX. Importing this package imports neither jax nor torch."""

__version__ = "0.1.0"
