"""Metric losses, one file per family.

Every loss is a function of a matrix [N, M], its rows anchors (or their proxies), its columns
references, with the signature

    loss(distances, relevance, *, margin=…, where=None, reduce_fn=jnp.mean)
    loss(similarities, relevance, *, temperature=…, where=None, reduce_fn=jnp.mean)

- on distances (lower is more alike): contrastive, margin, triplet, semi-hard triplet, hard triplet,
  lifted structure;
- on similarities (higher is more alike): NT-Xent, SupCon, sigmoid, multi-similarity, circle, proxy
  anchor, ArcFace, CosFace, Smooth-AP.

- `relevance` bool [N, M]: P(i) are row i's columns with relevance and `where` (its positives),
  Q(i) those with `where` and without relevance (its negatives).
- `where` bool [N, M]: pairs that count; default all. No loss leaves out self-pairs by itself: for
  one set against itself pass `where=~jnp.eye(n, dtype=bool)`.
- A negative may be infinitely far, at distance ∞ or similarity −∞: it violates nothing and has the
  derivative 0, though means over Q(i) count it. A positive there makes the value of its row
  infinite (in Smooth-AP it ranks last), and the row's derivatives may be NaN. Similarity +∞ and
  distance −∞ have no meaning, and may give NaN.
- `reduce_fn` takes the values per anchor [N]; the default averages over *all* rows, those with
  nothing to compare included as 0; of no rows at all it is NaN. None returns the values.

Margins, temperatures and the like may be traced, differentiated and mapped over. Where they are not
traced they must be finite, and those that divide or multiply an exponent above 0. At a tie of a
hinge (its argument exactly 0) the derivative is 0.

`mine_multi_similarity` and `mine_hard_negatives` choose pairs, as a `where`; `symmetric(loss)` is
the mean of both directions, and `checked(loss)` refuses a matrix of the wrong kind.
"""

from aadml_jax.losses.angular_margin import arcface_loss, cosface_loss
from aadml_jax.losses.checked import checked
from aadml_jax.losses.circle import circle_loss
from aadml_jax.losses.contrastive import contrastive_loss, margin_loss
from aadml_jax.losses.lifted_structure import lifted_structure_loss
from aadml_jax.losses.mined_triplet import hard_triplet_loss, semihard_triplet_loss
from aadml_jax.losses.mining import mine_hard_negatives, mine_multi_similarity
from aadml_jax.losses.multi_similarity import multi_similarity_loss, proxy_anchor_loss
from aadml_jax.losses.sigmoid import sigmoid_loss
from aadml_jax.losses.smooth_ap import smooth_ap_loss
from aadml_jax.losses.softmax import ntxent_loss, supcon_loss
from aadml_jax.losses.symmetric import symmetric
from aadml_jax.losses.triplet import triplet_loss

__all__ = [
    "arcface_loss",
    "checked",
    "circle_loss",
    "contrastive_loss",
    "cosface_loss",
    "hard_triplet_loss",
    "lifted_structure_loss",
    "margin_loss",
    "mine_hard_negatives",
    "mine_multi_similarity",
    "multi_similarity_loss",
    "ntxent_loss",
    "proxy_anchor_loss",
    "semihard_triplet_loss",
    "sigmoid_loss",
    "smooth_ap_loss",
    "supcon_loss",
    "symmetric",
    "triplet_loss",
]
