"""Random numbers that a seed alone decides, whatever generator the environment asks for.

`JAX_DEFAULT_PRNG_IMPL`, `JAX_RANDOM_SEED_OFFSET` and `JAX_THREEFRY_PARTITIONABLE`, or the options
of these names, are often set for a whole cluster. Keys are made by `seed_key`, and every draw is
made within `fixed_generator`: what is traced within it keeps it, in a caller's jit too.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from aadml_jax._arrays import Array


def seed_key(seed: int) -> Array:
    """The key that `jax.random.key(seed)` is without any such option.

    Args:
      seed: from 0 to 2⁶⁴ − 1.
    """
    words = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def fixed_generator() -> contextlib.AbstractContextManager[None]:
    """A context in which a threefry key gives the bits that are JAX's default since 0.5."""
    return jax.threefry_partitionable(True)
