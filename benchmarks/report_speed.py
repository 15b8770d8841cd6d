"""Speed of the whole retrieval report beside the ten best items alone, at the size of COCO.

    python -m benchmarks.report_speed
    python -m benchmarks.report_speed --images=1000 --captions=5 --dims=256

Images rank all captions, of which five belong to each, and captions rank all images, by cosine
similarity. Each row of the table does both directions from embeddings: `retrieval_report` gives all
of its metrics, the others find the first ten items, from which R@1, R@5 and R@10 follow. Checked
first: R@1, R@5 and R@10 of the report are those of the items that `lax.top_k` finds.
"""

import functools
from collections.abc import Callable

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
_IMAGES = flags.DEFINE_integer("images", 5000, "images", lower_bound=10)
_CAPTIONS = flags.DEFINE_integer("captions", 5, "captions of an image", lower_bound=1)
_DIMS = flags.DEFINE_integer("dims", 512, "numbers of an embedding", lower_bound=1)
_KS = (1, 5, 10)
_NOISE = 8.0  # keeps R@1 away from 0 and 1
_BLOCK = 1000
_TOLERANCE = 1e-3

Sides = tuple[tuple[jax.Array, np.ndarray], tuple[jax.Array, np.ndarray]]


def make_sides() -> Sides:
    """Embeddings and numbers of the image, of the images and of the captions."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((_IMAGES.value, _DIMS.value), np.float32)
    numbers = np.repeat(np.arange(_IMAGES.value, dtype=np.int32), _CAPTIONS.value)
    captions = images[numbers] + _NOISE * rng.standard_normal((len(numbers), _DIMS.value))
    return (jnp.asarray(images), np.arange(_IMAGES.value, dtype=np.int32)), (
        jnp.asarray(captions, jnp.float32),
        numbers,
    )


def by_report(sides: Sides) -> list[dict]:
    """The reports of both directions."""
    images, captions = sides
    return [
        aadml_jax.retrieval_report(
            queries[0],
            gallery[0],
            query_labels=queries[1],
            gallery_labels=gallery[1],
            ks=_KS,
            block_size=_BLOCK,
        )
        for queries, gallery in ((images, captions), (captions, images))
    ]


@functools.partial(jax.jit, static_argnums=2)
def _by_lax(queries: jax.Array, gallery: jax.Array, k: int) -> jax.Array:
    def of_block(block: jax.Array, _: jax.Array) -> jax.Array:
        return jax.lax.top_k(aadml_jax.cosine_similarity(block, gallery), k)[1]

    return aadml_jax.in_row_blocks(of_block, queries, block_size=_BLOCK)


def _both(search: Callable, sides: Sides) -> list[np.ndarray]:
    """The items that a search finds in both directions."""
    images, captions = sides[0][0], sides[1][0]
    return [
        np.asarray(search(*arrays, _KS[-1])) for arrays in ((images, captions), (captions, images))
    ]


def by_lax(sides: Sides) -> list[np.ndarray]:
    """JAX's own top_k, compiled, in blocks of queries."""
    return _both(_by_lax, sides)


def by_top_k(sides: Sides) -> list[np.ndarray]:
    """The library's search."""
    return _both(lambda *arguments: aadml_jax.top_k(*arguments).indices, sides)


def check(sides: Sides) -> list[dict[int, float]]:
    """R@k of both directions; raises UserError if report and items differ."""
    found, shares = by_lax(sides), []
    numbers = sides[0][1], sides[1][1]
    for report, indices, queries, gallery in zip(
        by_report(sides), found, numbers, numbers[::-1], strict=True
    ):
        is_hit = gallery[indices] == queries[:, None]
        by_items = {k: float(is_hit[:, :k].any(axis=1).mean()) for k in _KS}
        for k, share in by_items.items():
            if abs(share - report["hit_rate_at_k"][k]) > _TOLERANCE:
                raise UserError(f"R@{k} is {report['hit_rate_at_k'][k]}, of the items {share}")
        shares.append(by_items)
    return shares


def main() -> None:
    """Measures and prints a table."""
    sides = make_sides()
    with side_by_side.session(None):
        for direction, shares in zip(("image→caption", "caption→image"), check(sides), strict=True):
            print(f"{direction}: " + ", ".join(f"R@{k} {v:.3f}" for k, v in shares.items()))

        def prepared(way: Callable[[Sides], object]) -> Callable[[], object]:
            return functools.partial(way, sides)

        ways = {
            "jax.lax.top_k, 10 best": by_lax,
            "aadml_jax.top_k, 10 best": by_top_k,
            "aadml_jax.retrieval_report": by_report,
        }
        results = side_by_side.measure(
            [
                side_by_side.Subject(
                    name, lambda way=way: functools.partial(way, sides), compiles=True
                )
                for name, way in ways.items()
            ]
        )
        table = side_by_side.Table(
            (f"{_IMAGES.value:,} images, {len(sides[1][1]):,} captions × {_DIMS.value}", -28),
            ("s, both directions: median (min–max)", 24),
            ("CPU s", 8),
            ("rounds", 6),
            ("times lax.top_k", 15),
        )
        for result in results:
            ratio = result.wall / results[0].wall if result.walls and results[0].walls else None
            cells = result.cells(scale=1, digits=3)
            table.row(result.subject.name, *cells, "–" if ratio is None else f"{ratio:.2f}")


if __name__ == "__main__":
    command_line.run(main)
