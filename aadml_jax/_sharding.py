"""Rows that are split over the devices of an explicit mesh, where JAX asks how results are placed.

On a mesh of `jax.make_mesh`, whose axes are explicit, an array's type says along which axes it is
split. Operations that treat rows apart keep the split of their rows; what is left to say is where
two splits meet. The rule of this library: queries (anchors) keep the split of their rows, and
everything that all queries are compared with is gathered. On meshes with automatic axes, and
without a mesh, these functions change nothing.

Outside of `jax.set_mesh`, JAX itself refuses to differentiate op by op on such a mesh.
"""

import math

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

Array = jax.Array


def _placed(array: Array, spec: P) -> Array:
    sharding = jax.typeof(array).sharding
    if tuple(sharding.spec) == (*spec, *[None] * (array.ndim - len(spec))):
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))


def gathered(array: Array) -> Array:
    """`array` whole on every device."""
    return _placed(array, P())


def split_by_rows(array: Array) -> Array:
    """`array` with the split of its first axis alone; rows are whole on their device."""
    return _placed(array, P(*jax.typeof(array).sharding.spec[:1]))


def take_rows(array: Array, rows: Array) -> Array:
    """`array[rows]`, split as the integers `rows` are; `array` is gathered."""
    sharding = jax.typeof(rows).sharding
    array = gathered(array)
    if all(axis is None for axis in sharding.spec):
        return array[rows]
    spec = P(*sharding.spec, *[None] * (array.ndim - 1))
    return array.at[rows].get(out_sharding=NamedSharding(sharding.mesh, spec))


@jax.jit  # op by op, `array` may be on no mesh yet
def split_as(array: Array, other: Array) -> Array:
    """`array` [N, ...] with its rows split as those of `other` [N, ...]."""
    sharding = jax.typeof(other).sharding
    if sharding.spec[0] is None:
        return gathered(array)
    if jax.typeof(array).sharding.spec[:1] == (sharding.spec[0],):
        return split_by_rows(array)
    if jax.typeof(array).sharding.mesh.empty:
        # What is made on no mesh goes to that of `other`, which must not be dropped as unused.
        array, _ = jax.lax.optimization_barrier((array, jax.lax.stop_gradient(other)))
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, P(sharding.spec[0])))


def split_alike(*arrays: Array) -> tuple[Array, ...]:
    """Arrays [N, ...], all split by rows as the first of them that is."""
    if not any(axis is not None for x in arrays for axis in jax.typeof(x).sharding.spec):
        return arrays
    split = next((x for x in arrays if jax.typeof(x).sharding.spec[0] is not None), arrays[0])
    return tuple(split_as(array, split) for array in arrays)


def num_parts(array: Array) -> int:
    """Over how many devices the rows are split."""
    sharding = jax.typeof(array).sharding
    axes = sharding.spec[0]
    names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
    return math.prod(sharding.mesh.shape[name] for name in names)


def as_blocks(array: Array, block_size: int, like: Array) -> Array:
    """Rows [K · block, ...] as [K, block, ...], each block split as the rows of `like` are."""
    whole = gathered(array)
    blocks = whole.reshape(-1, block_size, *whole.shape[1:])
    sharding = jax.typeof(like).sharding
    if sharding.spec[0] is None:
        return blocks
    return jax.sharding.reshard(blocks, NamedSharding(sharding.mesh, P(None, sharding.spec[0])))
