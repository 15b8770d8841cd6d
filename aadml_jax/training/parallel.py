"""Placement over devices: which device holds which rows, and how a step is compiled for all.

The rows of a data set are sharded over the devices in order, equally many on each; the state is
replicated. A step's batch is global: its rows are drawn from all shards, and each device computes
the anchors of its shard of the batch against the references of the whole batch. So the number of
devices and the mode change no result beyond rounding.

- `jit`: one program over all devices; XLA's partitioner splits it by the sharding of the arrays,
  except for the objective, which `jax.shard_map` maps over the devices.
- `pmap`: the program of one device, with explicit collectives over the axis.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aadml_jax._arrays import Array
from aadml_jax.errors import UserError

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]  # a variable there

MODES = ("auto", "jit", "pmap")
AXIS = "rows"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices, and the way a step is spread over them.

    Attributes:
      devices: at least one of each process; those of one process follow upon each other.
      mode: `"jit"` or `"pmap"`; `"auto"` stands for jit.
    """

    devices: tuple[Device, ...]
    mode: str = "auto"

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown mode or no devices."""
        if self.mode not in MODES or not self.devices:
            raise ValueError(
                f"a mode among {', '.join(MODES)} and at least one device are needed; got "
                f"{self.mode!r} and {len(self.devices)} devices"
            )

    def __str__(self) -> str:
        """Such as "cpu" or "8 × gpu (pmap)"."""
        platform = self.devices[0].platform
        if len(self.devices) == 1:
            return platform
        return f"{len(self.devices)} × {platform} ({'jit' if self.mode == 'auto' else self.mode})"

    @property
    def axis_name(self) -> str | None:
        """Name of the axis that a step reduces over by itself; None where XLA partitions it."""
        return AXIS if self.mode == "pmap" else None

    @property
    def is_on_gpus(self) -> bool:
        """Whether the devices are GPUs, where a step takes as long as it has launches."""
        return self.devices[0].platform in ("gpu", "cuda", "rocm")

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """All devices along one axis."""
        return jax.sharding.Mesh(np.array(self.devices), (AXIS,))

    def check_batch_size(self, batch_size: int) -> None:
        """Checks that every device gets equally many rows of a batch.

        Raises:
          UserError: if the devices do not divide the batch size.
        """
        count = len(self.devices)
        if batch_size % count:
            lower = batch_size // count * count
            choices = f"{lower} or {lower + count}" if lower else str(count)
            raise UserError(
                f"--batch_size={batch_size} must be a multiple of the {count} devices, such as "
                f"{choices}"
            )

    def local_rows(self, num_rows: int) -> slice:
        """Which of N rows, sharded over the devices in order, this process holds.

        Args:
          num_rows: N.

        Returns:
          A slice of 0 … N; empty where the rows end before this process's devices.
        """
        size = self._shard_size(num_rows)
        local = self._local_places()
        return slice(min(local.start * size, num_rows), min(local.stop * size, num_rows))

    def shard(self, arrays: Any, num_rows: int, rows_axis: int = 0) -> Any:
        """Rows in equal shards on the devices, the last ones padded with zeros.

        Args:
          arrays: this process's rows, those of `local_rows`, as host arrays.
          num_rows: N of all processes.
          rows_axis: axis along which the rows lie.

        Returns:
          The arrays in the form that `compile` takes.
        """
        if self.mode == "pmap":
            return self._stack_shards(arrays, num_rows, rows_axis)
        if len(self.devices) == 1:
            return jax.device_put(arrays, self.devices[0])
        sharding = NamedSharding(self.mesh, _spec(rows_axis))
        size = self._shard_size(num_rows)

        def place(array: np.ndarray) -> Array:
            padded = self._padded(array, size, rows_axis)
            shape = list(padded.shape)
            shape[rows_axis] = size * len(self.devices)
            return jax.make_array_from_process_local_data(sharding, padded, tuple(shape))

        return jax.tree.map(place, arrays)

    def shard_shapes(self, shapes: Any, num_rows: int) -> Any:
        """What `shard` would return, as shapes: for programs that are compiled ahead of time.

        Args:
          shapes: pytree of `jax.ShapeDtypeStruct` [N, ...], of all rows.
          num_rows: N.
        """
        size, count = self._shard_size(num_rows), len(self.devices)
        rows = None if count == 1 or self.mode == "pmap" else NamedSharding(self.mesh, P(AXIS))

        def of_shards(whole: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sizes = (count, size) if self.mode == "pmap" else (count * size,)
            return jax.ShapeDtypeStruct((*sizes, *whole.shape[1:]), whole.dtype, sharding=rows)

        return jax.tree.map(of_shards, shapes)

    def _stack_shards(self, arrays: Any, num_rows: int, rows_axis: int) -> Any:
        """The form of `jax.pmap`: this process's shards along a new first axis."""
        local = self.devices[self._local_places()]
        sharding = NamedSharding(jax.sharding.Mesh(np.array(local), (AXIS,)), P(AXIS))
        size = self._shard_size(num_rows)

        def stack(array: np.ndarray) -> Array:
            padded = self._padded(array, size, rows_axis)
            shards = np.split(padded, len(local), axis=rows_axis)
            return jax.device_put(np.stack(shards), sharding)

        return jax.tree.map(stack, arrays)

    def _shard_size(self, num_rows: int) -> int:
        return -(-num_rows // len(self.devices))

    def _local_places(self) -> slice:
        """Places of this process's devices, which follow upon each other."""
        here = jax.process_index()
        places = [
            place for place, device in enumerate(self.devices) if device.process_index == here
        ]
        return slice(places[0], places[-1] + 1)

    def _padded(self, array: np.ndarray, shard_size: int, rows_axis: int) -> np.ndarray:
        local = self._local_places()
        missing = (local.stop - local.start) * shard_size - array.shape[rows_axis]
        if not missing:
            return array
        padding = [(0, 0)] * array.ndim
        padding[rows_axis] = (0, missing)
        return np.pad(array, padding)

    def replicate(self, tree: Any, *, donated: bool = False) -> Any:
        """A pytree of arrays, whole on every device, in the form that `compile` takes.

        What is there already stays where it is, and what is whole on some device is copied from
        there, without the host. `jax.pmap` replicates by itself: its form is the tree as it is, as
        is that of a single device.

        Args:
          tree: the arrays, on the host or on any devices.
          donated: whether the result is to be donated. On several devices it is then a copy;
            otherwise it may share its memory with `tree`.
        """
        if self.mode == "pmap" or len(self.devices) == 1:
            return tree
        sharding = NamedSharding(self.mesh, P())
        local = self.devices[self._local_places()]

        def place(leaf: Any) -> Array:
            if donated or not isinstance(leaf, jax.Array) or not leaf.is_fully_replicated:
                return _place(np.asarray(leaf), sharding)
            if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                return leaf
            there = {shard.device: shard.data for shard in leaf.addressable_shards}
            nearest = next(iter(there.values()))
            copies = jax.device_put([there.get(device, nearest) for device in local], list(local))
            return jax.make_array_from_single_device_arrays(leaf.shape, sharding, copies)

        return _map_leaves(place, tree)

    def replicate_shapes(self, tree: Any) -> Any:
        """A pytree of shapes in the form of `replicate`'s result under jit on several devices."""
        whole = NamedSharding(self.mesh, P())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree
        )

    def under_jit(self) -> "Placement":
        """The same devices with arrays sharded for jit, as evaluation needs them in any mode."""
        return dataclasses.replace(self, mode="jit")

    def take(self, data: Any, rows: Array) -> Any:
        """Within the compiled step: the given rows of what `shard` made, as this mode has them.

        Args:
          data: pytree of arrays; with `axis_name` the device's own shard of them.
          rows: int32 [B], global row numbers, B a multiple of the number of devices.

        Returns:
          Arrays [B, ...], or with `axis_name` the device's shard of them [B / devices, ...].
        """
        if len(self.devices) == 1:
            return jax.tree.map(lambda array: array[rows], data)
        if self.axis_name is None:
            sharding = NamedSharding(self.mesh, P(AXIS))
            return jax.tree.map(
                lambda array: jax.lax.with_sharding_constraint(array[rows], sharding), data
            )

        def from_owners(shard: Array) -> Array:
            # Each row lies on one device; the others add zeros, so the sum is exact.
            places = rows - jax.lax.axis_index(AXIS) * len(shard)
            is_own = (places >= 0) & (places < len(shard))
            taken = shard[jnp.clip(places, 0, len(shard) - 1)]
            is_own = is_own.reshape(-1, *[1] * (shard.ndim - 1))
            total = jax.lax.psum_scatter(jnp.where(is_own, taken, 0), AXIS, tiled=True)
            return total.astype(shard.dtype)  # bool is added up as integers

        return jax.tree.map(from_owners, data)

    def compile(self, function: Callable[..., Any], rows_axis: int = 0) -> Callable[..., Any]:
        """Compiles `function(data, keys, state, steps)`, which returns the next state.

        The data come from `shard` with the same `rows_axis`; all else is replicated. The memory
        of the state may be reused.
        """
        if self.mode == "pmap":
            return jax.pmap(
                function,
                axis_name=AXIS,
                in_axes=(0, None, None, None),
                out_axes=None,
                devices=self.devices,
            )
        if len(self.devices) == 1:
            # Said outright, since a state that is not yet bound to the device would compile the
            # program once more.
            here = jax.sharding.SingleDeviceSharding(self.devices[0])
            return jax.jit(function, donate_argnums=2, in_shardings=here, out_shardings=here)
        rows = NamedSharding(self.mesh, _spec(rows_axis))
        replicated = NamedSharding(self.mesh, P())
        return jax.jit(
            function,
            donate_argnums=2,
            in_shardings=(rows, replicated, replicated, replicated),
            out_shardings=replicated,
        )

    def map_shards(self, function: Callable[..., Any], shards: Any, replicated: Any = None) -> Any:
        """Within the compiled step: a function of rows whose value is the same on every device.

        XLA's partitioner, left to itself, gathers whole matrices for a search within their rows;
        under jit the function is therefore mapped over the devices by hand.

        Args:
          function: `function(shard, replicated, axis_name=…)`, with a device's shard of the rows.
          shards: pytree of arrays [B, ...] as `take` gives them.
          replicated: pytree of arrays that every device has.
        """
        if self.axis_name is not None or len(self.devices) == 1:
            return function(shards, replicated, axis_name=self.axis_name)
        return jax.shard_map(
            functools.partial(function, axis_name=AXIS),
            mesh=self.mesh,
            in_specs=(P(AXIS), P()),
            out_specs=P(),
        )(shards, replicated)


def _map_leaves(place: Callable[[Any], Array], tree: Any) -> Any:
    """The tree with its leaves placed, those of random keys by their numbers."""

    def place_any(leaf: Any) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = place(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        return place(leaf)

    return jax.tree.map(place_any, tree)


def _place(array: np.ndarray, sharding: NamedSharding) -> Array:
    # Unlike device_put, this asks no other process whether it holds the same.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _spec(rows_axis: int) -> P:
    return P(*[None] * rows_axis, AXIS)


def one_device() -> Placement:
    """JAX's default device alone."""
    return Placement(tuple(jax.devices()[:1]))


def all_devices(mode: str) -> Placement:
    """All devices of all processes, process by process."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Placement(tuple(devices), mode)
