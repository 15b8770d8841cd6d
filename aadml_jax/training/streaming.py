"""Training on rows that are read while it goes on, for data larger than a device's memory.

The order of the rows is that of data held on the device: step s of a run sees the same batch either
way, whatever the number of processes, each of which reads its part of every batch. The position in
the stream is therefore the number of the step, which a checkpoint holds anyhow.

Grain reads ahead in threads; the chunk that follows is put on the devices while one is trained on.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from aadml_jax._arrays import Array, ArrayLike
from aadml_jax.data import (
    LARGEST_DEVIATION,
    FeatureStandardization,
    StoredFeatures,
    standardize,
)
from aadml_jax.errors import require_extra
from aadml_jax.training.parallel import Placement
from aadml_jax.training.state import RunKeys, TrainState
from aadml_jax.training.step import (
    Batch,
    TrainStep,
    begin_epoch,
    check_steps,
    epoch_order,
    repeat_step,
    steps_in_epoch,
)

# Long enough that a call's overhead does not show. Six chunks at most are in memory at a time: two
# are read ahead, one is put together in two copies, and two are on the devices.
_STEPS_PER_CHUNK = 16
_CHUNK_BYTES = 64 * 2**20
_READING_THREADS = 8
_LAST_STEP = np.iinfo(np.int32).max


class _Span(NamedTuple):
    """Steps of a chunk to take: `count` of them, where step `first` is the chunk's first."""

    first: ArrayLike
    count: ArrayLike


class _Chunk(NamedTuple):
    """Consecutive batches on the devices, [K, B, ...]; `count` of the K are filled."""

    first: int
    count: int
    batches: Batch


def make_stream_steps(
    train_step: TrainStep,
    features: StoredFeatures,
    *,
    batch_size: int,
    keys: RunKeys,
    standardization: FeatureStandardization,
    placement: Placement,
    limit: float | None = LARGEST_DEVIATION,
) -> Callable[[TrainState, int], TrainState]:
    """The function `run_steps(state, num_steps)` of `make_run_steps`, on rows that are streamed.

    Args:
      train_step: from `make_train_step`, with the same placement.
      features: all training rows; those of a batch are read together.
      batch_size: rows per step, a multiple of the devices.
      keys: of the run.
      standardization: of the features.
      placement: over the devices.
      limit: of standardised values, see `standardize`.

    Raises:
      UserError: if Grain is not installed; `run_steps`, if rows cannot be read.
      ValueError: if there are fewer rows than a batch; `run_steps`, for more steps than the epoch
        has left.
    """
    require_grain()
    steps_per_epoch = steps_in_epoch(len(features), batch_size)
    placement.check_batch_size(batch_size)
    local = placement.local_rows(batch_size)
    row_bytes = 4 * (features.audio_dim + features.visual_dim) + features.labels[:1].nbytes
    batch_bytes = (local.stop - local.start) * row_bytes
    chunk_size = min(_STEPS_PER_CHUNK, steps_per_epoch, max(1, _CHUNK_BYTES // batch_bytes))

    def run_chunk(batches: Batch, keys: RunKeys, state: TrainState, span: _Span) -> TrainState:
        def batch_at(step: Array) -> Batch:
            return jax.tree.map(lambda array: array[step - span.first], batches)

        state = begin_epoch(state, steps_per_epoch)
        return repeat_step(train_step, batch_at, keys, state, span.count)

    @functools.lru_cache(maxsize=2)
    def order_of(epoch: int) -> np.ndarray:
        return np.asarray(epoch_order(keys, np.int32(epoch), len(features)))

    def read_local(step: int) -> Batch:
        first = step % steps_per_epoch * batch_size
        rows = order_of(step // steps_per_epoch)[first : first + batch_size]
        read = standardize(features.take(rows[local]), standardization, limit=limit)
        return Batch(*(getattr(read, name) for name in Batch._fields))

    def chunks_from(step: int) -> Iterator[_Chunk]:
        """Chunks of consecutive steps, each within one epoch."""
        batches = read_ahead(read_local, range(step, _LAST_STEP), 2 * chunk_size)
        while True:
            count = min(chunk_size, steps_per_epoch - step % steps_per_epoch)
            read = list(itertools.islice(batches, count))
            # One shape for all, so that the program is compiled once.
            read += read[-1:] * (chunk_size - count)
            stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *read)
            yield _Chunk(step, count, placement.shard(stacked, batch_size, rows_axis=1))
            step += count

    compiled = placement.compile(run_chunk, rows_axis=1)
    device_keys = placement.replicate(keys)
    chunks: Iterator[_Chunk] = iter(())
    chunk: _Chunk | None = None

    def run_steps(state: TrainState, num_steps: int) -> TrainState:
        nonlocal chunks, chunk
        step = int(state.step)
        end = step + check_steps(step, num_steps, steps_per_epoch)
        while step < end:
            if chunk is None or not chunk.first <= step < chunk.first + chunk.count:
                chunks = chunks_from(step)
                chunk = next(chunks)
            last = min(end, chunk.first + chunk.count)
            span = _Span(np.int32(chunk.first), np.int32(last - step))
            state = compiled(chunk.batches, device_keys, state, span)
            if last == chunk.first + chunk.count:
                chunk = next(chunks)
            # Reading must not run ahead of the devices by more than a chunk.
            jax.block_until_ready(state)
            step = last
        return state

    return run_steps


def require_grain() -> None:
    """Checks that the package is there.

    Raises:
      UserError: if not.
    """
    require_extra(
        "grain",
        "--input=stream needs the package grain; run pip install -e '.[stream]', or leave the flag "
        "out",
    )


def read_ahead(
    read: Callable[[int], Batch], numbers: Sequence[int], num_ahead: int
) -> Iterator[Batch]:
    """Maps `read` over numbers in threads, in order, some of them ahead of the demand.

    Args:
      read: gives the batch of a number; an error it raises comes out of the iterator.
      numbers: of any length.
      num_ahead: most batches that wait to be taken.
    """
    import grain

    return iter(
        grain.MapDataset.source(numbers)
        .map(read)
        .to_iter_dataset(
            grain.ReadOptions(
                num_threads=min(_READING_THREADS, num_ahead), prefetch_buffer_size=num_ahead
            )
        )
    )
