"""Settings for the whole suite: implicit rank promotion is an error, as in careful user code."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
