"""What a run takes on a TPU slice: `python -m prm_jax.plan`."""
