"""Metric losses of a distance matrix, one file per family.

Every loss has the signature

    loss(distances, relevance, *, margin=…, where=None, reduce_fn=jnp.mean)

- `distances` [N, M]: rows are anchors (or their proxies), columns are references.
- `relevance` bool [N, M]: P(i) are row i's columns with relevance and `where` (its positives),
  Q(i) those with `where` and without relevance (its negatives).
- `where` bool [N, M]: pairs that count; default all. No loss leaves out self-pairs by itself: for
  one set against itself pass `where=~jnp.eye(n, dtype=bool)`.
- `reduce_fn` takes the values per anchor [N]; the default averages over *all* rows, those with
  nothing to compare included as 0. None returns the values.

Margins may be traced, differentiated and mapped over. At a tie of a hinge (its argument exactly 0)
the derivative is 0.
"""

from aadml_jax.losses.contrastive import contrastive_loss
from aadml_jax.losses.mined_triplet import hard_triplet_loss, semihard_triplet_loss
from aadml_jax.losses.triplet import triplet_loss

__all__ = [
    "contrastive_loss",
    "hard_triplet_loss",
    "semihard_triplet_loss",
    "triplet_loss",
]
