"""Every public function on a mesh with explicit axes: rows split, or whole on every device."""

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


def blocked(anchors, references, labels, *, block_size):
    def of_block(block, rows):
        return aa.triplet_loss(
            aa.cosine_distance(block, references), jnp.asarray(RELEVANCE)[rows], reduce_fn=None
        )

    del labels
    return aa.in_row_blocks(of_block, anchors, block_size=block_size)


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
        }.items()
    },
    "prefix_average_precision": (aa.prefix_average_precision, (SCORES, RELEVANCE)),
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
WITHOUT_GRADIENT = ("same_label", "correlation_graph", "update_memory")


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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("split", ["all", "first", "none"])
def test_values_are_those_of_whole_arrays(name, split):
    function, arrays = CASES[name]
    expected = function(*arrays)
    placed_arrays = placed(arrays, split)
    assert_close(oracles.compiled(function)(*placed_arrays), expected)
    if split == "all":
        assert_close(function(*placed_arrays), expected)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(WITHOUT_GRADIENT)])
def test_gradients_are_those_of_whole_arrays(name):
    function, (first, *others) = CASES[name]
    if first.dtype != np.float32:
        pytest.skip("integers have no gradient")

    def total(first, *others):
        leaves = jax.tree.leaves(function(first, *others))
        return sum(
            jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape))
            for leaf in leaves
        )

    gradient = jax.jit(jax.grad(total))
    expected = gradient(first, *others)
    arrays = placed((first, *others), "all")
    with jax.set_mesh(mesh()):
        assert_close(gradient(*arrays), expected)


def test_queries_keep_their_split():
    audio, gallery, labels = placed((AUDIO, GALLERY, LABELS), "all")
    for result in (
        jax.jit(aa.cosine_similarity)(audio, gallery),
        jax.jit(aa.anchor_aware_proxies)(audio, labels),
        jax.jit(aa.average_precision)(*placed((SCORES, RELEVANCE), "all")),
        jax.jit(functools.partial(blocked, block_size=4))(audio, gallery, labels),
    ):
        assert result.sharding.spec[0] == "rows"


def test_every_public_function_has_a_case():
    functions = {name for name in aa.__all__ if callable(getattr(aa, name))}
    named = {name.split()[0].rstrip(",") for name in CASES}
    assert functions - named == {"AnchorAware", "CorrelationGraph", "Memory", "init_memory"}


@pytest.mark.parametrize("name", [*METRIC_LOSSES, "aadml_objective", "class_proxy_objective"])
def test_arguments_that_are_split_otherwise_go_with_the_first_that_is_split_by_rows(name):
    random = np.random.default_rng(1)
    if name in METRIC_LOSSES:
        arrays = random.random((8, 8), np.float32), random.random((8, 8)) > 0.5
        specs = P(None, "rows"), P("rows")
    else:
        audio, visual = random.normal(size=(2, 8, 4)).astype(np.float32)
        arrays = audio, visual, np.arange(8, dtype=np.int32) % 4
        specs = P(None, "rows"), P(), P("rows")
    function = getattr(aa, name)
    split = (
        jax.device_put(array, NamedSharding(mesh(), spec))
        for array, spec in zip(arrays, specs, strict=True)
    )
    with jax.set_mesh(mesh()):
        actual = jax.jit(function)(*split)
    assert_close(actual, function(*arrays))
