"""Cross-batch memory: embeddings of earlier batches as further references of any loss.

Wang et al., "Cross-Batch Memory for Embedding Learning" (XBM), CVPR 2020, arXiv:1912.06798. The
memory is explicit state, a pytree that is passed in and returned; it is checkpointed like any other
part of a training state. Its samples are appended as columns:

    references = jnp.concatenate([visual, memory.embeddings])              # [B + size, D]
    reference_labels = jnp.concatenate([labels, memory.labels])
    is_new = jnp.ones(len(visual), bool)
    where = jnp.broadcast_to(
        jnp.concatenate([is_new, memory.is_filled]), (len(audio), len(references)))
    loss = ntxent_loss(
        cosine_similarity(audio, references),
        same_label(labels, reference_labels),
        where=where)
    memory = update_memory(memory, visual, labels)

Two modalities have a memory each. Update after the loss, as above, and the batch stands in the
references once. (The authors' code enqueues first and takes the loss against the memory as a second
term.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, ArrayLike, LabelsLike, as_labels, check_count
from aadml_jax._sharding import split_as, take_rows


class Memory(NamedTuple):
    """The last `size` samples, in a ring: new ones take the places of the oldest.

    Attributes:
      embeddings: [size, D]; 0 in places not yet filled.
      labels: class numbers [size]; 0 in places not yet filled.
      is_filled: bool [size], the places that hold a sample: the `where` of the memory's columns.
      next_place: int32 scalar in 0 … size − 1, where the next sample goes.
    """

    embeddings: Array
    labels: Array
    is_filled: Array
    next_place: Array


def init_memory(size: int, dim: int) -> Memory:
    """An empty memory.

    Args:
      size: samples that it holds, ≥ 1; static.
      dim: D, numbers of an embedding, ≥ 1; static.

    Returns:
      A `Memory` in JAX's default dtypes.

    Raises:
      ValueError: for a size or dim below 1.
    """
    size, dim = check_count(size, "size", (size, dim)), check_count(dim, "dim", (size, dim))
    return Memory(
        embeddings=jnp.zeros((size, dim)),
        labels=jnp.zeros(size, int),
        is_filled=jnp.zeros(size, bool),
        next_place=jnp.zeros((), jnp.int32),
    )


def update_memory(memory: Memory, embeddings: ArrayLike, labels: LabelsLike) -> Memory:
    """The memory with a batch in the place of its oldest samples.

    Args:
      memory: from `init_memory` or an earlier call.
      embeddings: [B, D]; no gradient flows into the memory. Of more than `size` rows the last
        `size` are kept.
      labels: class numbers [B], of any integer dtype.

    Returns:
      The new memory; the one passed in is unchanged.

    Raises:
      ValueError: for shapes that do not fit, labels that are not class numbers, or, unless traced,
        class numbers that the memory's dtype cannot hold.

    >>> import jax.numpy as jnp
    >>> memory = init_memory(3, 1)
    >>> memory = update_memory(memory, jnp.array([[0.25], [0.5]]), jnp.array([4, 5]))
    >>> memory = update_memory(memory, jnp.array([[0.75], [1.0]]), jnp.array([6, 7]))
    >>> print(memory.embeddings[:, 0], memory.labels)
    [1.   0.5  0.75] [7 5 6]
    """
    memory = jax.tree.map(jnp.asarray, memory)  # a restored one holds NumPy arrays
    embeddings, labels = jnp.asarray(embeddings), as_labels(labels, dtype=memory.labels.dtype)
    size, dim = memory.embeddings.shape
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings [B, {dim}] and labels [B] are needed for a memory of shape "
            f"{memory.embeddings.shape}; got {embeddings.shape} and {labels.shape}"
        )
    num_new = embeddings.shape[0]
    kept = min(num_new, size)
    # Which of the kept rows comes to each place, counted round the ring from where the first goes.
    first = memory.next_place + (num_new - kept)
    source = (jnp.arange(size, dtype=jnp.int32) - first) % size
    is_new = source < kept
    source = jnp.where(is_new, source + (num_new - kept), 0)

    def write(old: Array, new: Array) -> Array:
        if not kept:
            return old
        written = split_as(take_rows(new.astype(old.dtype), source), old)
        is_written = split_as(is_new, old).reshape(-1, *[1] * (old.ndim - 1))
        return jnp.where(is_written, written, old)

    return Memory(
        embeddings=write(memory.embeddings, jax.lax.stop_gradient(embeddings)),
        labels=write(memory.labels, labels),
        is_filled=memory.is_filled | is_new,
        next_place=(memory.next_place + num_new) % size,
    )
