"""The cross-batch memory: a ring against a plain list, and its use as further columns."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa

UPDATE = jax.jit(aa.update_memory)


def batch(seed, size, dim=2):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, dim)).astype(np.float32), rng.integers(0, 5, size, np.int32)


def held(memory):
    """The samples in the memory, as a sorted list of (label, embedding)."""
    rows = zip(memory.labels, memory.embeddings, memory.is_filled, strict=True)
    return sorted((int(y), *map(float, x)) for y, x, filled in rows if filled)


@pytest.mark.parametrize("sizes", [(3,), (5,), (2, 2, 2), (4, 4, 1, 3), (7, 1), (2, 13, 3)])
def test_holds_the_last_samples_like_a_list_that_drops_its_front(sizes):
    memory, kept = aa.init_memory(5, 2), []
    for seed, size in enumerate(sizes):
        embeddings, labels = batch(seed, size)
        memory = UPDATE(memory, embeddings, labels)
        kept += [(int(y), *map(float, x)) for x, y in zip(embeddings, labels, strict=True)]
        kept = kept[-5:]
        assert held(memory) == sorted(kept)


def test_new_samples_take_the_places_of_the_oldest():
    memory = aa.init_memory(4, 1)
    for first in (0, 3):
        numbers = np.arange(first, first + 3)
        memory = UPDATE(memory, numbers[:, None].astype(np.float32), numbers)
    np.testing.assert_array_equal(memory.labels, [4, 5, 2, 3])
    np.testing.assert_array_equal(memory.embeddings[:, 0], [4, 5, 2, 3])
    assert int(memory.next_place) == 2


def test_an_empty_memory_adds_nothing_and_a_filled_one_equals_a_wider_batch():
    audio, labels = batch(0, 4)
    visual, _ = batch(1, 4)
    old, old_labels = batch(2, 3)

    @jax.jit
    def loss(audio, memory):
        references = jnp.concatenate([visual, memory.embeddings])
        relevance = aa.same_label(labels, jnp.concatenate([labels, memory.labels]))
        where = jnp.concatenate([jnp.ones(4, bool), memory.is_filled])
        return aa.ntxent_loss(
            aa.cosine_similarity(audio, references),
            relevance,
            where=jnp.broadcast_to(where, relevance.shape),
        )

    empty = aa.init_memory(5, 2)
    filled = UPDATE(empty, old, old_labels)
    for memory, columns, column_labels in (
        (empty, visual, labels),
        (filled, np.concatenate([visual, old]), np.concatenate([labels, old_labels])),
    ):
        similarities = oracles.pairwise(oracles.cosine, audio, columns)
        relevance = labels[:, None] == column_labels[None, :]
        rows = oracles.by_row(oracles.ntxent_row, similarities, relevance, temperature=0.07)
        assert float(loss(audio, memory)) == pytest.approx(rows.mean(), rel=1e-5)


def test_no_gradient_flows_into_the_memory():
    embeddings, labels = batch(3, 2)

    def total(x):
        return aa.update_memory(aa.init_memory(3, 2), x, labels).embeddings.sum()

    assert float(jax.jit(total)(embeddings)) == pytest.approx(embeddings.sum(), rel=1e-5)
    assert not np.any(jax.jit(jax.grad(total))(embeddings))


def test_is_a_pytree_that_scan_carries_and_whose_arrays_restore_it():
    embeddings, labels = batch(4, 12)
    steps = (embeddings.reshape(4, 3, 2), labels.reshape(4, 3))
    memory, _ = jax.lax.scan(
        lambda memory, step: (aa.update_memory(memory, *step), None), aa.init_memory(5, 2), steps
    )
    rows = zip(embeddings[-5:], labels[-5:], strict=True)
    assert held(memory) == sorted((int(y), *map(float, x)) for x, y in rows)
    leaves, structure = jax.tree.flatten(memory)
    again = jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])
    for one, other in zip(
        aa.update_memory(again, *batch(5, 3)), UPDATE(memory, *batch(5, 3)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_embeddings_take_the_memorys_dtype():
    memory = UPDATE(aa.init_memory(3, 2), jnp.ones((2, 2), jnp.bfloat16), np.array([1, 2], np.int8))
    assert (memory.embeddings.dtype, memory.labels.dtype) == (jnp.float32, jnp.int32)
    with oracles.x64():
        assert aa.init_memory(3, 2).embeddings.dtype == jnp.float64


@pytest.mark.parametrize(("size", "dim"), [(0, 2), (2, 0), (2.5, 2)])
def test_sizes_below_one_raise(size, dim):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        aa.init_memory(size, dim)


@pytest.mark.parametrize(
    ("embeddings", "labels"), [((3, 2), (4,)), ((3, 3), (3,)), ((3,), (3,)), ((3, 2), (3, 2))]
)
def test_shapes_that_do_not_fit_raise_an_error_that_prints_them(embeddings, labels):
    with pytest.raises(ValueError) as error:
        aa.update_memory(aa.init_memory(5, 2), jnp.zeros(embeddings), jnp.zeros(labels, int))
    assert all(str(shape) in str(error.value) for shape in (embeddings, labels, (5, 2)))


def test_class_numbers_that_do_not_fit_raise():
    with pytest.raises(ValueError, match=r"uint32 and shape .* do not fit into the memory's int32"):
        aa.update_memory(aa.init_memory(5, 2), jnp.zeros((1, 2)), np.array([2**32 - 1], np.uint32))


@pytest.mark.parametrize("form", [np.asarray, jnp.asarray, np.ndarray.tolist])
def test_class_numbers_are_held_to_the_memorys_dtype_in_any_container(form):
    memory = aa.init_memory(5, 2)._replace(labels=jnp.zeros(5, jnp.int8))
    with pytest.raises(ValueError, match=r"shape \(2,\) do not fit into the memory's int8"):
        aa.update_memory(memory, jnp.zeros((2, 2)), form(np.array([0, 128])))
    kept = aa.update_memory(memory, jnp.zeros((2, 2)), form(np.array([-128, 127])))
    assert kept.labels[:2].tolist() == [-128, 127]


def test_labels_must_be_class_numbers():
    with pytest.raises(ValueError, match="class numbers must be integers"):
        aa.update_memory(aa.init_memory(5, 2), jnp.zeros((3, 2)), jnp.zeros(3))
