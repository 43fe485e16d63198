"""One portrait clip to a dataset of `tkjax.contract`: stages that resume, one file each. Never imports jax."""
