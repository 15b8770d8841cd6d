"""What the pure core must compute, as float64 loops, and the random cases that its tests share.

A row oracle sees one row with the excluded columns already dropped: a list of numbers and, beside
it, which of them are relevant. `by_row` does the dropping, so that every comparison with a `where`
in it also says that excluding a pair is the same as dropping its column.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def x64(enabled=True):
    """A context with 64-bit types switched on or off, under old and new JAX."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    from jax.experimental import enable_x64

    return enable_x64(enabled)


def pair_case(seed, n=5, m=7, low=0.0, high=2.0):
    """Random matrix, relevance and where [n, m]; every row keeps a relevant and another column."""
    rng = np.random.default_rng(seed)
    matrix = rng.uniform(low, high, (n, m))
    relevance = rng.random((n, m)) < 0.4
    where = rng.random((n, m)) < 0.75
    for i in range(n):
        p, q = rng.choice(m, 2, replace=False)
        relevance[i, p], relevance[i, q] = True, False
        where[i, [p, q]] = True
    return matrix, relevance, where


def degenerate_case(seed, low=0.0, high=2.0):
    """One ordinary row, then rows without relevant columns, without others, or without any.

    The last two columns are excluded from every row.
    """
    matrix = np.random.default_rng(seed).uniform(low, high, (6, 7))
    relevance = np.array(
        [
            [1, 0, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 1, 0],  # nothing is relevant
            [1, 1, 1, 1, 1, 1, 0],  # everything is relevant
            [1, 0, 1, 0, 0, 1, 0],  # the relevant columns are excluded
            [1, 0, 1, 0, 0, 1, 0],  # only the relevant columns are left
            [0, 1, 0, 0, 1, 1, 0],  # everything is excluded
        ],
        dtype=bool,
    )
    where = np.array(
        [
            [1, 1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 1, 0, 0],
            [0, 1, 0, 1, 1, 0, 0],
            [1, 0, 1, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ],
        dtype=bool,
    )
    return matrix, relevance, where


def by_row(row_oracle, matrix, relevance, where=None, constants=None, **params):
    """The row oracle on every row, after dropping the columns where `where` is False.

    With `constants`, a second matrix, the oracle sees pairs of a number and its constant.
    """
    matrix = np.asarray(matrix).astype(np.float64)
    if constants is not None:
        constants = np.asarray(constants).astype(np.float64)
    relevance = np.asarray(relevance, dtype=bool)
    where = np.ones_like(relevance) if where is None else np.asarray(where, dtype=bool)
    rows = []
    for i, (values, relevant, kept) in enumerate(zip(matrix, relevance, where, strict=True)):
        columns = [j for j in range(len(values)) if kept[j]]
        row_values = [float(values[j]) for j in columns]
        if constants is not None:
            row_values = [(float(values[j]), float(constants[i, j])) for j in columns]
        row_relevant = [bool(relevant[j]) for j in columns]
        rows.append(row_oracle(row_values, row_relevant, **params))
    return np.array(rows, dtype=np.float64)


def mean(values):
    """The mean, 0 of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def sides(values, relevant):
    """The values of the relevant columns and those of the others."""
    positives = [v for v, r in zip(values, relevant, strict=True) if r]
    negatives = [v for v, r in zip(values, relevant, strict=True) if not r]
    return positives, negatives


# Losses


def contrastive_row(distances, relevant, *, margin):
    positives, negatives = sides(distances, relevant)
    return mean(d**2 for d in positives) + mean(max(0.0, margin - d) ** 2 for d in negatives)


def triplet_row(distances, relevant, *, margin):
    positives, negatives = sides(distances, relevant)
    return mean(max(0.0, p - q + margin) for p in positives for q in negatives)


def semihard_triplet_row(distances, relevant, *, margin):
    positives, negatives = sides(distances, relevant)
    if not negatives:
        return 0.0
    terms = []
    for p in positives:
        farther = [q for q in negatives if q > p]
        chosen = min(farther) if farther else max(negatives)
        terms.append(max(0.0, p - chosen + margin))
    return mean(terms)


def hard_triplet_row(distances, relevant, *, margin):
    positives, negatives = sides(distances, relevant)
    return max(0.0, max(positives) - min(negatives) + margin) if positives and negatives else 0.0


def logsumexp(values):
    return math.log(sum(math.exp(v) for v in values)) if values else -math.inf


def softplus(value):
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def margin_row(distances, relevant, *, margin, beta):
    positives, negatives = sides(distances, relevant)
    near = mean(max(0.0, d - beta + margin) for d in positives)
    return near + mean(max(0.0, beta - d + margin) for d in negatives)


def lifted_structure_row(distances, relevant, *, margin):
    positives, negatives = sides(distances, relevant)
    if not positives or not negatives:
        return 0.0
    return max(0.0, logsumexp(positives) + logsumexp([margin - d for d in negatives]))


def ntxent_row(similarities, relevant, *, temperature):
    positives, negatives = sides(similarities, relevant)
    against = sum(math.exp(s / temperature) for s in negatives)
    own = [math.exp(s / temperature) for s in positives]
    return mean(-math.log(p / (p + against)) for p in own)


def sigmoid_row(similarities, relevant, *, temperature, bias):
    signs = (-1 if is_positive else 1 for is_positive in relevant)
    return sum(
        softplus(sign * (s / temperature + bias))
        for sign, s in zip(signs, similarities, strict=True)
    )


def cosface_row(similarities, relevant, *, margin, scale):
    return _margin_softmax(similarities, relevant, lambda s: s - margin, scale)


def arcface_row(similarities, relevant, *, margin, scale):
    def own(s):
        angle = math.acos(min(1.0, max(-1.0, s)))
        return (
            math.cos(angle + margin) if angle + margin <= math.pi else s - margin * math.sin(margin)
        )

    return _margin_softmax(similarities, relevant, own, scale)


def _margin_softmax(similarities, relevant, own, scale):
    positives, negatives = sides(similarities, relevant)
    others = sum(math.exp(scale * s) for s in negatives)
    return mean(math.log1p(others / math.exp(scale * own(s))) for s in positives)


def supcon_row(similarities, relevant, *, temperature):
    positives, _ = sides(similarities, relevant)
    total = sum(math.exp(s / temperature) for s in similarities)
    return mean(-math.log(math.exp(s / temperature) / total) for s in positives)


def multi_similarity_row(similarities, relevant, *, alpha, beta, base):
    positives, negatives = sides(similarities, relevant)
    pull = math.log1p(sum(math.exp(-alpha * (s - base)) for s in positives)) / alpha
    return pull + math.log1p(sum(math.exp(beta * (s - base)) for s in negatives)) / beta


def proxy_anchor_row(similarities, relevant, *, margin, alpha):
    positives, negatives = sides(similarities, relevant)
    pull = math.log1p(sum(math.exp(-alpha * (s - margin)) for s in positives))
    return pull + math.log1p(sum(math.exp(alpha * (s + margin)) for s in negatives))


def circle_row(similarities, relevant, *, margin, gamma):
    """Each similarity is a number, or a pair of it and the weight that stays constant."""
    if not any(relevant) or all(relevant):
        return 0.0
    push = pull = 0.0
    for similarity, is_positive in zip(similarities, relevant, strict=True):
        s, weight = similarity if isinstance(similarity, tuple) else (similarity, None)
        if is_positive:
            weight = max(0.0, 1 + margin - s) if weight is None else weight
            pull += math.exp(-gamma * weight * (s - 1 + margin))
        else:
            weight = max(0.0, s + margin) if weight is None else weight
            push += math.exp(gamma * weight * (s - margin))
    return math.log1p(push * pull)


def circle_weights(similarities, relevance, *, margin):
    """What the derivative of the circle loss takes for constant [n, m]."""
    similarities = np.asarray(similarities).astype(np.float64)
    positive, negative = 1 + margin - similarities, similarities + margin
    return np.maximum(0, np.where(relevance, positive, negative))


def smooth_ap_row(similarities, relevant, *, temperature):
    def above(j, p):
        gap = (similarities[j] - similarities[p]) / temperature
        return 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0

    precisions, columns = [], range(len(similarities))
    for p in columns:
        if relevant[p]:
            rank = 1 + sum(above(j, p) for j in columns if j != p)
            among = 1 + sum(above(j, p) for j in columns if j != p and relevant[j])
            precisions.append(among / rank)
    return 1 - mean(precisions) if precisions else 0.0


# Metrics


def ranking(scores):
    """Columns from the best score to the worst, equal scores (−0.0 and 0.0 too) in column order."""
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))


def average_precision_row(scores, relevant):
    hits, precisions = 0, []
    for rank, j in enumerate(ranking(scores), start=1):
        if relevant[j]:
            hits += 1
            precisions.append(hits / rank)
    return mean(precisions)


def prefix_average_precision_row(scores, relevant):
    hits, total, running = 0, 0.0, []
    for rank, j in enumerate(ranking(scores), start=1):
        if relevant[j]:
            hits += 1
            total += hits / rank
        running.append(total / hits if hits else 0.0)
    return mean(running)


def precision_at_row(scores, relevant, *, k):
    return sum(relevant[j] for j in ranking(scores)[:k]) / k


def recall_at_row(scores, relevant, *, k):
    return float(any(relevant[j] for j in ranking(scores)[:k]))


def fraction_recall_at_row(scores, relevant, *, k):
    hits = sum(relevant[j] for j in ranking(scores)[:k])
    return hits / sum(relevant) if any(relevant) else 0.0


def r_precision_row(scores, relevant):
    return fraction_recall_at_row(scores, relevant, k=sum(relevant))


def average_precision_at_r_row(scores, relevant):
    hits, total = 0, 0.0
    for rank, j in enumerate(ranking(scores)[: sum(relevant)], start=1):
        if relevant[j]:
            hits += 1
            total += hits / rank
    return total / sum(relevant) if any(relevant) else 0.0


def first_hit_rank_row(scores, relevant):
    for rank, j in enumerate(ranking(scores), start=1):
        if relevant[j]:
            return float(rank)
    return len(scores) + 1.0


def reciprocal_rank_row(scores, relevant):
    return 1 / first_hit_rank_row(scores, relevant) if any(relevant) else 0.0


def ndcg_at_row(scores, grades, *, k):
    """Of grades, or of relevance, whose grades are 0 and 1."""

    def gain(ordered):
        return sum(g / math.log2(1 + rank) for rank, g in enumerate(ordered[:k], start=1))

    best = gain(sorted((float(g) for g in grades), reverse=True))
    return gain([float(grades[j]) for j in ranking(scores)]) / best if best else 0.0


# Similarity, graph, proxies


def pairwise(pair_oracle, a, b):
    """The pair oracle on every row of a against every row of b."""
    a, b = (np.asarray(x).astype(np.float64) for x in (a, b))
    return np.array([[pair_oracle(x, y) for y in b] for x in a])


def cosine(x, y):
    norms = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
    return sum(v * w for v, w in zip(x, y, strict=True)) / norms if norms else 0.0


def squared_euclidean(x, y):
    return sum((v - w) ** 2 for v, w in zip(x, y, strict=True))


def euclidean(x, y):
    return math.sqrt(squared_euclidean(x, y))


def share_a_class(x, y):
    """Two labels, each an integer or a multi-hot vector."""
    if np.ndim(x) == 0:
        return int(x) == int(y)
    return any(bool(v) and bool(w) for v, w in zip(x, y, strict=True))


def graph(embeddings, labels, *, num_neighbors, same_class=True, references=None):
    """Indices, weights and mask [N, k] of the correlation graph."""
    points, labels = np.asarray(embeddings).astype(np.float64), np.asarray(labels)
    sought = points if references is None else np.asarray(references).astype(np.float64)
    n = len(points)
    indices = np.repeat(np.arange(n)[:, None], num_neighbors, axis=1)
    weights, mask = np.zeros((n, num_neighbors)), np.zeros((n, num_neighbors), dtype=bool)
    for i in range(n):
        others = [
            j
            for j in range(n)
            if (references is not None or j != i)
            and (not same_class or share_a_class(labels[i], labels[j]))
        ]
        others.sort(key=lambda j: (-cosine(points[i], sought[j]), j))
        mask[i, 0], weights[i, 0] = True, cosine(points[i], points[i])
        for place, j in enumerate(others[: num_neighbors - 1], start=1):
            indices[i, place], mask[i, place] = j, True
            weights[i, place] = cosine(points[i], sought[j])
    return indices, weights, mask


def softmax(logits):
    exponentials = [math.exp(v - max(logits)) for v in logits]
    return [v / sum(exponentials) for v in exponentials]


def neighbor_attention(anchor, neighbours, temperature):
    scale = temperature * math.sqrt(len(anchor))
    weights = softmax([float(anchor @ p) / scale for p in neighbours])
    return sum(w * p for w, p in zip(weights, neighbours, strict=True))


def channel_attention(anchor, neighbours, temperature):
    channels, pairs, scale = len(anchor), [], temperature * math.sqrt(len(anchor))
    for neighbour in neighbours:
        value = []
        for c in range(channels):
            logits = [anchor[c] * neighbour[e] / scale for e in range(channels)]
            value.append(sum(w * v for w, v in zip(softmax(logits), anchor, strict=True)))
        pairs.append(np.array(value))
    return sum(pairs) / len(pairs)


def proxies(
    embeddings,
    labels,
    *,
    num_neighbors,
    attention="neighbor",
    same_class=True,
    references=None,
    temperature=1.0,
):
    """Anchor-aware proxies [N, D]."""
    points = np.asarray(embeddings).astype(np.float64)
    sought = points if references is None else np.asarray(references).astype(np.float64)
    attend = {"neighbor": neighbor_attention, "channel": channel_attention}[attention]
    indices, _, mask = graph(
        points, labels, num_neighbors=num_neighbors, same_class=same_class, references=references
    )
    rows = [
        [point, *sought[row[1:][kept[1:]]]]
        for point, row, kept in zip(points, indices, mask, strict=True)
    ]
    return np.array(
        [attend(point, row, temperature) for point, row in zip(points, rows, strict=True)]
    )


# Compiled programs


@functools.cache
def compiled(function, **options):
    """The jitted function of its arrays; the suite spends its time on compiling, so share these."""
    return jax.jit(functools.partial(function, **options))


def rounded_products(function, *args):
    """The matrix products of the compiled function that TPU and GPU may round to fewer bits."""
    lines = jax.jit(function).lower(*args).as_text().splitlines()
    return [line for line in lines if "dot_general" in line and "HIGHEST" not in line]


def temporary_bytes(function, *args):
    """Scratch memory of the compiled function, inputs and outputs not counted."""
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def finite_difference(function, x, step=1e-6):
    """Central difference of a scalar float64 function at a number."""
    return (function(x + step) - function(x - step)) / (2 * step)


def as_float32(*arrays):
    return tuple(jnp.asarray(array, dtype=jnp.float32) for array in arrays)
