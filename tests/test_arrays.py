"""What all functions accept as labels and counts, and messages that name what is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa
from aadml_jax.objective import aadml_objective

NUMBERS = np.array([0, 2, 1, 2, 0])
ROWS = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]])
POINTS = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)

TAKERS = {
    "same_label": lambda labels: aa.same_label(labels, labels),
    "same_label's second": lambda labels: aa.same_label(
        NUMBERS if np.ndim(labels) == 1 else np.ones((2, np.shape(labels)[1]), bool), labels
    ),
    "correlation_graph": lambda labels: aa.correlation_graph(POINTS[0], labels, num_neighbors=2),
    "anchor_aware_proxies": lambda labels: aa.anchor_aware_proxies(POINTS[0], labels),
    "cross_modal_report": lambda labels: aa.cross_modal_report(*POINTS, labels, ks=(1,)),
    "aadml_objective": lambda labels: aadml_objective(*POINTS, labels),
    "update_memory": lambda labels: aa.update_memory(aa.init_memory(7, 3), POINTS[0], labels),
}
OF_ROWS = sorted(TAKERS.keys() - {"update_memory"})


class Column:
    """What a pandas.Series or a torch.Tensor is to NumPy and JAX."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self):
        return len(self.values)


CONTAINERS = {"numpy": np.asarray, "list": np.ndarray.tolist, "column": Column, "jax": jnp.asarray}


@pytest.fixture(params=TAKERS)
def take(request):
    return TAKERS[request.param]


@pytest.fixture(params=CONTAINERS)
def container(request):
    return CONTAINERS[request.param]


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(actual, expected):
    for one, other in zip(leaves(actual), leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_containers_and_integer_dtypes_give_the_same(take, container):
    expected = take(NUMBERS.astype(np.int32))
    for dtype in (np.int64, np.uint8, np.int16):
        assert_same(take(container(NUMBERS.astype(dtype))), expected)


@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_of_zero_and_one_may_have_any_dtype(name, container):
    expected = TAKERS[name](ROWS.astype(bool))
    for dtype in (np.uint8, np.int64, np.float32, jnp.bfloat16):
        assert_same(TAKERS[name](container(ROWS.astype(dtype))), expected)


@pytest.mark.parametrize("values", [[0, 2, 1, 2, 0], [0, 1, 1, 0, 1], [1.0, 0.0, 0.0, 1.0, 0.0]])
def test_a_column_of_class_numbers_is_refused_with_the_remedy(take, container, values):
    column = np.asarray(values)[:, None]
    with pytest.raises(ValueError, match=r"\(5, 1\) are a column .* pass labels\[:, 0\]"):
        take(container(column))
    with pytest.raises(ValueError, match=r"pass labels\[:, 0\]"):
        jax.jit(take)(column)


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_boolean_column_is_a_single_class(name):
    column = np.array([True, False, True, True, False])[:, None]
    if name == "aadml_objective":
        total, _ = aadml_objective(*POINTS[:, :, :1], column)
        assert np.isfinite(total)
    else:
        TAKERS[name](column)
    relevance = aa.same_label(column, column)
    np.testing.assert_array_equal(relevance, column & column.T)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (np.array([0, 0.5, 1, 0, 0]), "float64"),
        (np.array([0, np.nan, 1, 0, 0]), "float64"),
        (np.array([True, False, True, True, False]), "bool"),
        (np.array(["cat", "dog", "cat", "cat", "dog"]), "<U3"),
        (np.array([0, None, 1, 0, 0], object), "object"),
        (np.array([0, 2**70, 1, 0, 0], object), "object"),
        (np.array([0, 1, 2, 0, 1], "timedelta64[s]"), "timedelta64"),
        (np.array([0, 1, 2, 0, 1j]), "complex128"),
    ],
)
def test_class_numbers_that_are_no_integers_are_refused_by_name(take, wrong, got):
    for form in (np.asarray, Column):
        with pytest.raises(
            ValueError, match=rf"(class numbers|labels) must be .*got {got}.*\(5,\)"
        ):
            take(form(wrong))


@pytest.mark.parametrize("name", OF_ROWS)
@pytest.mark.parametrize(
    "wrong", [2, -1, 255, 0.5, 1e-9, np.nan, np.inf], ids=lambda value: f"{value}"
)
def test_other_codings_of_rows_are_refused_with_the_place(name, container, wrong):
    rows = ROWS.astype(np.float32 if isinstance(wrong, float) else np.int32)
    rows[3, 1] = wrong
    with pytest.raises(ValueError, match=r"hold 0 and 1 alone; got .* at \[3, 1\]; decide which"):
        TAKERS[name](container(rows))


@pytest.mark.parametrize("values", [[0, 2**32], [0, -(2**31) - 1], [2**63, 2**63]])
@pytest.mark.parametrize("container", ["numpy", "list", "column"])
def test_class_numbers_beyond_32_bits_are_refused_in_any_container(values, container, take):
    numbers = np.array(values * 3)[:5]
    with pytest.raises(ValueError, match=rf"{numbers.dtype} and shape \(5,\) do not fit into "):
        take(CONTAINERS[container](numbers))


def test_class_numbers_of_64_bits_are_kept_where_jax_has_them():
    with oracles.x64():
        far = Column([2**32 + 1, 1])
        np.testing.assert_array_equal(aa.same_label(far, [1]), [[False], [True]])
        memory = aa.update_memory(aa.init_memory(2, 3), np.eye(2, 3), far)
        assert memory.labels.tolist() == [2**32 + 1, 1]


@pytest.mark.parametrize("wrong", [-1, 3, 99])
def test_the_objective_refuses_classes_that_the_outputs_do_not_have(container, wrong):
    labels = NUMBERS.copy()
    labels[2] = wrong
    with pytest.raises(ValueError, match=rf"in 0 … 2 for 3 classes; got {wrong} in row 2 of"):
        aadml_objective(*POINTS, container(labels))
    with pytest.raises(ValueError, match=f"got {wrong} in row 2"):  # a constant of the program
        jax.jit(functools.partial(aadml_objective, labels=container(labels)))(*POINTS)


def test_values_of_traced_labels_are_not_checked():
    labels = NUMBERS.copy()
    labels[2] = 99
    of_none = np.eye(4)[np.minimum(labels, 3)][:, :3]  # a clip of no class
    actual = jax.jit(aadml_objective)(*POINTS, labels)[1]
    expected = aadml_objective(*POINTS, of_none)[1]
    for name in ("label_loss_audio", "label_loss_visual"):
        assert float(actual[name]) == pytest.approx(float(expected[name]), rel=1e-6)


def test_a_list_of_traced_numbers_and_ragged_lists():
    pairs = jax.jit(lambda x, y: aa.same_label([x, y], [y]))(3, 4)
    np.testing.assert_array_equal(pairs, [[False], [True]])
    with pytest.raises(ValueError, match="labels cannot be read as an array"):
        aa.same_label([[0, 1], [1]], [0])


@pytest.mark.parametrize("count", [True, np.bool_(True), 1.0, np.float32(2), "1", None, 0, -1])
def test_counts_that_are_no_integers_of_at_least_one_are_refused(count):
    for use in (
        lambda k: aa.init_memory(k, 2),
        lambda k: aa.correlation_graph(POINTS[0], NUMBERS, num_neighbors=k),
        lambda k: aa.anchor_aware_proxies(POINTS[0], NUMBERS, num_neighbors=k),
        lambda k: aa.anchor_aware_proxies(POINTS[0], NUMBERS, num_neighbors=k, max_neighbors=3),
        lambda k: aa.in_row_blocks(lambda block, _: block[:, 0], POINTS[0], block_size=k),
    ):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            use(count)


@pytest.mark.parametrize("count", [2, np.int64(2), np.uint8(2), np.array(2), jnp.int32(2)])
def test_counts_may_be_integers_of_any_kind(count):
    assert aa.init_memory(count, count).embeddings.shape == (2, 2)
    assert aa.correlation_graph(POINTS[0], NUMBERS, num_neighbors=count).indices.shape == (5, 2)
