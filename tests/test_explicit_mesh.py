"""Every public function on a mesh with explicit axes: rows split, or whole on every device.

JAX refuses what it cannot place while it traces, which is quick, so every function is traced with
every split. One function of each way to meet splits is compiled and compared with whole arrays;
all others are in the long matrix.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import aadml_jax as aa
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.named_losses import NAMED_LOSSES

N, M, D = 8, 12, 5
RNG = np.random.default_rng(0)
AUDIO, VISUAL = RNG.normal(size=(2, N, D)).astype(np.float32)
GALLERY = RNG.normal(size=(M, D)).astype(np.float32)
LABELS, GALLERY_LABELS = np.arange(N, dtype=np.int32) % 3, np.arange(M, dtype=np.int32) % 4
SEVERAL = RNG.random((N, D)) < 0.4
SCORES = np.round(RNG.uniform(0, 2, (N, M)), 1).astype(np.float32)  # some are tied
RELEVANCE, WHERE = RNG.random((N, M)) < 0.4, RNG.random((N, M)) < 0.8
PART_FILLED = aa.update_memory(aa.init_memory(M, D), GALLERY[:7], GALLERY_LABELS[:7])
SMALL = aa.update_memory(aa.init_memory(4, D), GALLERY[:3], GALLERY_LABELS[:3])


def blocked(anchors, references, labels, *, block_size, function=aa.in_row_blocks):
    def of_block(block, rows):
        return aa.triplet_loss(
            aa.cosine_distance(block, references), jnp.asarray(RELEVANCE)[rows], reduce_fn=None
        )

    del labels
    return function(of_block, anchors, block_size=block_size)


METRIC_LOSSES = [n for n in aa.__all__ if n.endswith("_loss") and not n.endswith("label_loss")]


def _of_part(name, scores, relevance, where):
    return getattr(aa, name)(scores, relevance, where=where, reduce_fn=None)


# name: the function, and its arrays
CASES = {
    **{
        name: (getattr(aa, name), (AUDIO, GALLERY))
        for name in (
            "cosine_similarity",
            "cosine_distance",
            "euclidean_distance",
            "squared_euclidean_distance",
            "posterior_similarity",
        )
    },
    "posterior_similarity of sure outputs": (aa.posterior_similarity, (100 * AUDIO, 100 * GALLERY)),
    "same_label": (aa.same_label, (LABELS, GALLERY_LABELS)),
    "same_label of several classes": (aa.same_label, (SEVERAL, ~SEVERAL[:4])),
    "correlation_graph": (
        functools.partial(aa.correlation_graph, num_neighbors=4),
        (AUDIO, LABELS),
    ),
    "correlation_graph of some rows": (
        lambda x, labels, rows: aa.correlation_graph(x, labels, num_neighbors=3, rows=rows),
        (AUDIO, SEVERAL, np.array([5, -1, 0, 2], np.int32)),
    ),
    "anchor_aware_proxies": (aa.anchor_aware_proxies, (AUDIO, LABELS)),
    "anchor_aware_proxies by channel": (
        functools.partial(aa.anchor_aware_proxies, attention="channel"),
        (AUDIO, SEVERAL),
    ),
    "anchor_aware_proxies of some rows among references": (
        lambda x, labels, rows, references: aa.anchor_aware_proxies(
            x, labels, rows=rows, references=references, num_neighbors=2, max_neighbors=3
        ),
        (AUDIO, LABELS, np.array([5, -1, 0, 2], np.int32), VISUAL),
    ),
    "anchor_aware_proxies of the anchor alone": (
        functools.partial(aa.anchor_aware_proxies, num_neighbors=1),
        (AUDIO, LABELS),
    ),
    **{
        f"{name}, {ties}": (
            functools.partial(getattr(aa, name), ties=ties, **params),
            (SCORES, RELEVANCE),
        )
        for ties in ("stable", "expected")
        for name, params in {
            "average_precision": {},
            "mean_average_precision": {},
            "precision_at": {"k": 3},
            "recall_at": {"k": 2},
            "fraction_recall_at": {"k": 2},
            "r_precision": {},
            "average_precision_at_r": {},
            "reciprocal_rank": {},
            "first_hit_rank": {},
            "ndcg_at": {"k": 4},
        }.items()
    },
    "prefix_average_precision": (aa.prefix_average_precision, (SCORES, RELEVANCE)),
    **{
        f"ndcg_at of grades, {ties}": (
            functools.partial(aa.ndcg_at, k=4, ties=ties),
            (SCORES, np.asarray(3 * SCORES, np.int32)),
        )
        for ties in ("stable", "expected")
    },
    **{
        name: (getattr(aa, name), (SCORES,))
        for name in ("csls", "inverted_softmax", "dual_softmax")
    },
    "csls of a part": (lambda scores, where: aa.csls(scores, k=3, where=where), (SCORES, WHERE)),
    "dual_softmax of a part": (
        lambda scores, where: aa.dual_softmax(scores, where=where),
        (SCORES, WHERE),
    ),
    "average_precision of integers": (
        aa.average_precision,
        (np.asarray(10 * SCORES, np.int32), RELEVANCE),
    ),
    **{
        f"{name} of a part": (
            functools.partial(_of_part, name),
            (SCORES, RELEVANCE, WHERE),
        )
        for name in (*METRIC_LOSSES, "average_precision")
    },
    **{name: (getattr(aa, name), (SCORES, RELEVANCE)) for name in METRIC_LOSSES},
    "symmetric of a loss": (aa.symmetric(aa.ntxent_loss), (SCORES, RELEVANCE)),
    "checked, a loss": (aa.checked(aa.ntxent_loss), (SCORES, RELEVANCE)),
    "mine_multi_similarity": (aa.mine_multi_similarity, (SCORES, RELEVANCE)),
    "mine_hard_negatives": (functools.partial(aa.mine_hard_negatives, k=2), (SCORES, RELEVANCE)),
    **{
        name: (getattr(aa, name), (AUDIO, SEVERAL))
        for name in ("squared_label_loss", "cross_entropy_label_loss")
    },
    **{
        f"cross_modal_report, {similarity}": (
            functools.partial(
                aa.cross_modal_report, similarity=similarity, ks=(1, 3), block_size=3
            ),
            (AUDIO, VISUAL, LABELS),
        )
        for similarity in ("cosine", "posterior")
    },
    "cross_modal_report of several classes": (
        functools.partial(aa.cross_modal_report, ks=(2,), ties="stable"),
        (AUDIO, VISUAL, SEVERAL),
    ),
    **{
        f"in_row_blocks of {size}": (
            functools.partial(blocked, block_size=size),
            (AUDIO, GALLERY, LABELS),
        )
        for size in (1, 3, 4, 100)
    },
    "mean_in_row_blocks of 3": (
        functools.partial(blocked, block_size=3, function=aa.mean_in_row_blocks),
        (AUDIO, GALLERY, LABELS),
    ),
    **{
        f"top_k, {similarity}": (
            functools.partial(aa.top_k, k=3, similarity=similarity, block_size=4),
            (AUDIO, GALLERY),
        )
        for similarity in ("cosine", "posterior")
    },
    "top_k of a part": (
        lambda queries, gallery, where: aa.top_k(queries, gallery, 3, where=where),
        (AUDIO, GALLERY, WHERE),
    ),
    "update_memory": (aa.update_memory, (PART_FILLED, AUDIO, LABELS)),
    "update_memory with more than fits": (
        aa.update_memory,
        (SMALL, AUDIO, LABELS),
    ),
    **{
        f"{objective.func.__name__}, {loss}": (objective, (AUDIO, VISUAL, LABELS))
        for loss in NAMED_LOSSES
        for objective in [RecipeConfig(loss=loss).objective()]
    },
    "aadml_objective of several classes within modalities": (
        functools.partial(aa.aadml_objective, intra_modal=True),
        (AUDIO, VISUAL, SEVERAL),
    ),
}
WITH_GRADIENT = [
    name
    for name, (_, arrays) in CASES.items()
    if not name.startswith(("same_label", "correlation_graph", "update_memory", "top_k", "mine_"))
    and arrays[0].dtype == np.float32
]
COMPILED = {
    "posterior_similarity",
    "same_label of several classes",
    "correlation_graph of some rows",
    "anchor_aware_proxies of some rows among references",
    "average_precision, expected",
    "average_precision of a part",
    "reciprocal_rank, expected",
    "csls of a part",
    "dual_softmax of a part",
    "ndcg_at of grades, expected",
    "triplet_loss of a part",
    "smooth_ap_loss",
    "cross_modal_report, cosine",
    "in_row_blocks of 3",
    "mean_in_row_blocks of 3",
    "top_k of a part",
    "update_memory",
    "aadml_objective, contrastive",
    "class_proxy_objective, proxy_anchor",
}
# One objective, op by op, calls what the others are made of.
OP_BY_OP = COMPILED - {
    "anchor_aware_proxies of some rows among references",
    "aadml_objective, contrastive",
}


def full_but(chosen, names=CASES):
    """All names; those that are not chosen for every run are marked."""
    return [
        name if name in chosen else pytest.param(name, marks=pytest.mark.full) for name in names
    ]


@functools.cache
def mesh():
    return jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))


def placed(arrays, split):
    """The arrays on the mesh: "all" split by rows, "first" with all others whole, or "none"."""

    def place(number, array):
        spec = P("rows") if split == "all" or (split, number) == ("first", 0) else P()
        return jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh(), spec if np.ndim(x) else P())), array
        )

    return tuple(place(number, array) for number, array in enumerate(arrays))


def numbers(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def assert_close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(numbers(actual), numbers(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def weighted_sum(function):
    """A scalar function in which every number that `function` returns has its own weight."""

    def total(*arrays):
        return sum(
            jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape))
            for leaf in jax.tree.leaves(function(*arrays))
        )

    return total


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("split", ["all", "first", "none"])
def test_results_are_split_by_rows_as_their_queries_are(name, split):
    function, arrays = CASES[name]
    is_split = split == "all" or (split == "first" and "some rows" not in name)
    actual, expected = (jax.eval_shape(function, *x) for x in (placed(arrays, split), arrays))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.ndim and is_split:
            assert one.sharding.spec == P("rows", *[None] * (one.ndim - 1))
        else:
            assert one.sharding is None or not any(one.sharding.spec)


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_gradients_are_split_as_their_array_is(name):
    function, arrays = CASES[name]
    with jax.set_mesh(mesh()):
        gradient = jax.eval_shape(jax.grad(weighted_sum(function)), *placed(arrays, "all"))
    assert (gradient.shape, gradient.sharding.spec) == (arrays[0].shape, P("rows", None))


@pytest.mark.parametrize("name", full_but(COMPILED))
@pytest.mark.parametrize(
    "split", ["all", *(pytest.param(split, marks=pytest.mark.full) for split in ("first", "none"))]
)
def test_values_are_those_of_whole_arrays(name, split):
    function, arrays = CASES[name]
    expected = oracles.compiled(function)(*arrays)
    assert_close(oracles.compiled(function)(*placed(arrays, split)), expected)


@pytest.mark.parametrize("name", full_but(OP_BY_OP))
def test_plain_calls_give_the_values_of_whole_arrays(name):
    function, arrays = CASES[name]
    assert_close(function(*placed(arrays, "all")), oracles.compiled(function)(*arrays))


@pytest.mark.parametrize("name", full_but(COMPILED, WITH_GRADIENT))
def test_gradients_are_those_of_whole_arrays(name):
    function, arrays = CASES[name]
    gradient = jax.jit(jax.grad(weighted_sum(function)))
    expected = gradient(*arrays)
    with jax.set_mesh(mesh()):
        assert_close(gradient(*placed(arrays, "all")), expected)


def test_every_public_function_has_a_case():
    functions = {name for name in aa.__all__ if callable(getattr(aa, name))}
    named = {name.split()[0].rstrip(",") for name in CASES}
    assert functions - named == {
        *("AnchorAware", "CorrelationGraph", "Memory", "TopK"),
        *("init_memory", "load_run"),
        "retrieval_report",  # cannot be traced
    }
    assert set(CASES) >= COMPILED


def split_otherwise(name):
    """A function, its arrays, and those arrays split by columns, by rows or not at all."""
    random = np.random.default_rng(1)
    if name in METRIC_LOSSES:
        arrays = random.random((8, 8), np.float32), random.random((8, 8)) > 0.5
        specs = P(None, "rows"), P("rows")
    else:
        audio, visual = random.normal(size=(2, 8, 4)).astype(np.float32)
        arrays = audio, visual, np.arange(8, dtype=np.int32) % 4
        specs = P(None, "rows"), P(), P("rows")
    split = [
        jax.device_put(array, NamedSharding(mesh(), spec))
        for array, spec in zip(arrays, specs, strict=True)
    ]
    return getattr(aa, name), arrays, split


@pytest.mark.parametrize("name", [*METRIC_LOSSES, "aadml_objective", "class_proxy_objective"])
def test_arguments_that_are_split_otherwise_can_be_traced(name):
    function, _, split = split_otherwise(name)
    with jax.set_mesh(mesh()):
        jax.eval_shape(function, *split)


@pytest.mark.parametrize("name", ["contrastive_loss", "class_proxy_objective"])
def test_arguments_that_are_split_otherwise_go_with_the_first_that_is_split_by_rows(name):
    function, arrays, split = split_otherwise(name)
    with jax.set_mesh(mesh()):
        actual = oracles.compiled(function)(*split)
    assert_close(actual, oracles.compiled(function)(*arrays))


@pytest.mark.parametrize("block_size", [1, 3, 10])
def test_blocks_of_a_split_batch_need_not_divide_it(block_size):
    """Of 20 rows on 4 devices in blocks of 10, blocks have 8 rows, and 4 are left over."""
    rng = np.random.default_rng(1)
    audio, visual = rng.normal(size=(2, 20, D)).astype(np.float32)
    arrays = audio, visual, np.arange(20, dtype=np.int32) % 3
    expected = oracles.compiled(aa.aadml_objective)(*arrays)
    objective = functools.partial(aa.aadml_objective, block_size=block_size)
    with jax.set_mesh(mesh()):
        actual = oracles.compiled(objective)(*placed(arrays, "all"))
    assert_close(actual, expected)
