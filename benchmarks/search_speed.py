"""Speed of exact search for the k best items of a gallery, beside faiss' flat index.

    python -m benchmarks.search_speed
    python -m benchmarks.search_speed --sizes=100000 --dims=128 --queries=1,100 --k=100

Queries and gallery are random directions, so that the cosine, ours, and the inner product, which
faiss has, are the same; that of `top_k` includes scaling the rows to length 1 at every call. faiss'
index is built before the measurement. First each way's items are compared with NumPy's for a few
queries, in float64; two items whose scores differ by rounding alone may change places.

Needs `pip install faiss-cpu`, which the extra `bench` brings; without it, faiss is left out.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import aadml_jax
from aadml_jax.errors import UserError
from benchmarks import side_by_side
from experiments import command_line

side_by_side.define_flags(rounds=5)
flags.adopt_module_key_flags(side_by_side)  # so that --help lists them
_SIZES = flags.DEFINE_list("sizes", ["100000", "1000000"], "items of the gallery")
_DIMS = flags.DEFINE_list("dims", ["10", "128"], "numbers of an embedding")
_QUERIES = flags.DEFINE_list("queries", ["1", "1000"], "queries of a call")
_K = flags.DEFINE_integer("k", 10, "items found for each query", lower_bound=1)
_CHECKED = 8
_TOLERANCE = 1e-5

# Queries [N, D] -> scores and indices [N, k].
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Case(NamedTuple):
    """Unit vectors, float32: queries [N, D] and gallery [M, D]."""

    queries: np.ndarray
    gallery: np.ndarray


def make_case(num_items: int, num_dims: int, num_queries: int) -> Case:
    """Random directions."""
    rng = np.random.default_rng(0)
    sides = (rng.standard_normal((n, num_dims), np.float32) for n in (num_queries, num_items))
    return Case(*(side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides))


def _product(queries: jax.Array, gallery: jax.Array) -> jax.Array:
    return jnp.matmul(queries, gallery.T, precision=jax.lax.Precision.HIGHEST)


def by_top_k(case: Case, similarity: str | Callable) -> Search:
    """Ours, on arrays of JAX's."""
    gallery = jnp.asarray(case.gallery)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = aadml_jax.top_k(queries, gallery, _K.value, similarity=similarity)
        return np.asarray(found.scores), np.asarray(found.indices)

    return search


@functools.partial(jax.jit, static_argnums=2)
def _sorted_scores(queries: jax.Array, gallery: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(_product(queries, gallery), k)


def by_lax(case: Case) -> Search:
    """All scores at once, and JAX's own top_k of them."""
    gallery = jnp.asarray(case.gallery)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, indices = _sorted_scores(jnp.asarray(queries), gallery, _K.value)
        return np.asarray(scores), np.asarray(indices)

    return search


def by_faiss(case: Case) -> Search:
    """The index that compares a query with every item."""
    try:
        import faiss
    except ImportError as error:
        raise side_by_side.NotRunError(f"{error}: pip install faiss-cpu") from None
    faiss.omp_set_num_threads(side_by_side.cores())
    index = faiss.IndexFlatIP(case.gallery.shape[1])
    index.add(case.gallery)
    return lambda queries: index.search(queries, _K.value)


def check(search: Search, case: Case) -> None:
    """Raises UserError if the items of a few queries are not the best."""
    queries = case.queries[:_CHECKED]
    scores = queries.astype(np.float64) @ case.gallery.T.astype(np.float64)
    best = -np.sort(-scores, axis=1)[:, : _K.value]
    of_search, indices = search(queries)
    for found in (of_search, np.take_along_axis(scores, indices.astype(np.int64), axis=1)):
        if not np.allclose(found, best, rtol=0, atol=_TOLERANCE):
            raise UserError(f"other scores than NumPy's, by {np.abs(found - best).max():.2g}")


def subjects(case: Case) -> list[side_by_side.Subject]:
    """What is measured in one case."""
    all_scores = 4 * len(case.queries) * len(case.gallery)

    def subject(name: str, make: Callable[[Case], Search], **options) -> side_by_side.Subject:
        def prepare() -> Callable[[], object]:
            search = make(case)
            check(search, case)
            return lambda: search(case.queries)

        return side_by_side.Subject(name, prepare, units=len(case.queries), **options)

    peers = [subject("faiss IndexFlatIP", by_faiss)] if flags.FLAGS.peers else []
    return [
        subject("aadml_jax.top_k, cosine", functools.partial(by_top_k, similarity="cosine")),
        subject("aadml_jax.top_k, product", functools.partial(by_top_k, similarity=_product)),
        *peers,
        subject("jax.lax.top_k of all scores", by_lax, needs_bytes=2 * all_scores, compiles=True),
    ]


def _counts(flag: flags.FlagHolder) -> list[int]:
    if not all(value.isdecimal() and int(value) > 0 for value in flag.value):
        raise UserError(f"--{flag.name}={','.join(flag.value)} must be whole numbers above 0")
    return [int(value) for value in flag.value]


def main() -> None:
    """Measures all ways in every case and prints a table."""
    sizes, dims, queries = map(_counts, (_SIZES, _DIMS, _QUERIES))
    if _K.value > min(sizes):
        raise UserError(f"--k={_K.value} exceeds the smallest gallery of --sizes, {min(sizes)}")
    with side_by_side.session(None):
        table = side_by_side.Table(
            ("items × numbers", -16),
            ("queries", 8),
            ("way", -28),
            ("ms a query (range)", 24),
            ("CPU ms", 8),
            ("rounds", 6),
            ("times faiss", 11),
            ("", -1),
        )
        for case in (make_case(m, d, n) for m in sizes for d in dims for n in queries):
            results = side_by_side.measure(subjects(case))
            of_faiss = [r for r in results if r.subject.name.startswith("faiss") and r.walls]
            for result in results:
                ratio = (
                    f"{result.wall / of_faiss[0].wall:.2f}" if of_faiss and result.walls else "–"
                )
                table.row(
                    f"{len(case.gallery):,} × {case.gallery.shape[1]}",
                    f"{len(case.queries):,}",
                    result.subject.name,
                    *result.cells(digits=3),
                    ratio,
                    result.remark,
                )


if __name__ == "__main__":
    command_line.run(main)
