"""Plain jnp: the specification of every op, the gradient oracle and the fallback on every platform."""
