"""Mining: which pairs a loss is to look at, as `where` masks.

    where = mine_multi_similarity(similarities, relevance)
    loss = multi_similarity_loss(similarities, relevance, where=where)

Both take similarities; for a loss on distances pass them negated. No derivative flows through the
choice.
"""

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array, ArrayLike, as_pairs, as_scalar, check_count
from aadml_jax._ordering import last_key, order_keys


def mine_multi_similarity(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    epsilon: ArrayLike = 0.1,
    where: ArrayLike | None = None,
) -> Array:
    """Pairs that a pair of the other kind comes close to, or passes.

    A negative q is kept if s_iq > min over p∈P(i) of s_ip − ε, a positive p if
    s_ip < max over q∈Q(i) of s_iq + ε.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR
    2019, arXiv:1904.06627, equations 7 and 8, the mining that comes before `multi_similarity_loss`.

    Args:
      similarities: [N, M], higher for more alike.
      relevance: bool [N, M].
      epsilon: ε, how close counts. The default 0.1 is the paper's.
      where: bool [N, M], the pairs that count; default all.

    Returns:
      bool [N, M], within `where`. Of an anchor without positives or without negatives no pair is
      kept. A NaN is kept, so that it shows.

    Raises:
      ValueError: for shapes that do not fit, or an epsilon that is no scalar or, unless traced, not
        finite.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.array([[0.9, 0.5, 0.45, 0.1]])
    >>> relevance = jnp.array([[True, True, False, False]])
    >>> print(mine_multi_similarity(similarities, relevance))
    [[False  True  True False]]
    """
    similarities, positives, negatives = _constant_pairs(similarities, relevance, where)
    epsilon = jax.lax.stop_gradient(as_scalar(epsilon, similarities.dtype, "epsilon"))
    least = jnp.min(similarities, axis=1, keepdims=True, initial=jnp.inf, where=positives)
    most = jnp.max(similarities, axis=1, keepdims=True, initial=-jnp.inf, where=negatives)
    # Written so that NaN, which fails every comparison, is kept.
    is_near = negatives & ~(similarities <= least - epsilon)
    is_far = positives & ~(similarities >= most + epsilon)
    return is_near | is_far


def mine_hard_negatives(
    similarities: ArrayLike,
    relevance: ArrayLike,
    *,
    k: int = 1,
    where: ArrayLike | None = None,
) -> Array:
    """All positives, and of each anchor's negatives the k most similar ones.

    With one positive per anchor and k = 1 a hinge then is the loss of Faghri et al., "VSE++:
    Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018, arXiv:1707.05612, equation
    6.

    Args:
      similarities: [N, M], higher for more alike.
      relevance: bool [N, M].
      k: how many negatives, static and at least 1.
      where: bool [N, M], the pairs that count; default all.

    Returns:
      bool [N, M], within `where`. Of negatives that are equally similar the first columns are kept;
      of an anchor with fewer than k, all. A NaN counts as most similar, so that it shows.

    Raises:
      ValueError: for shapes that do not fit, or a k below 1.

    >>> import jax.numpy as jnp
    >>> similarities = jnp.array([[0.9, 0.5, 0.7, 0.1]])
    >>> relevance = jnp.array([[True, False, False, False]])
    >>> print(mine_hard_negatives(similarities, relevance))
    [[ True False  True False]]
    """
    similarities, positives, negatives = _constant_pairs(similarities, relevance, where)
    k = check_count(k, "k", similarities.shape)
    # Similarity falls along the order, NaN first and what is no negative last.
    keys = order_keys(jnp.where(jnp.isnan(similarities), -jnp.inf, -similarities))
    order = jnp.argsort(jnp.where(negatives, keys, last_key(keys)), axis=1, stable=True)
    places = jnp.argsort(order, axis=1)
    return positives | (negatives & (places < k))


def _constant_pairs(
    similarities: ArrayLike, relevance: ArrayLike, where: ArrayLike | None
) -> tuple[Array, Array, Array]:
    values, positives, negatives = as_pairs(similarities, relevance, where, "similarities")
    return jax.lax.stop_gradient(values), positives, negatives
