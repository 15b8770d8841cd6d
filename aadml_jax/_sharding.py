"""Rows that are split over the devices of an explicit mesh, where JAX asks how results are placed.

On a mesh of `jax.make_mesh`, whose axes are explicit, an array's type says along which axes it is
split. Operations that treat rows apart keep the split of their rows; what is left to say is where
two splits meet. The rule of this library: queries (anchors) keep the split of their rows, and
everything that all queries are compared with is gathered. On meshes with automatic axes, and
without a mesh, these functions change nothing.
"""

import math

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aadml_jax._arrays import Array


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


def like_rows_of(array: Array, other: Array) -> Array:
    """`array` with the rows of `other` split as those are; `array` has as many."""
    sharding = jax.typeof(other).sharding
    if not sharding.spec or sharding.spec[0] is None:
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, P(sharding.spec[0])))


def num_parts(array: Array) -> int:
    """Over how many devices the rows are split."""
    sharding = jax.typeof(array).sharding
    axes = sharding.spec[0] if array.ndim else None
    names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
    return math.prod(sharding.mesh.shape[name] for name in names)
