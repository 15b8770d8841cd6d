"""Values and gradients against definitions that others wrote: PyTorch, PML, torchmetrics.

PML is pytorch-metric-learning. Both sides start from the same float64 embeddings of two sets, audio
[N, D] and visual [M, D], and are differentiated in both. Where a peer averages, squares or mines
differently, a comment says why it is corrected; where none fits, the paper's formula stands here.
"""

import collections
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import oracles
import pytest

import aadml_jax as aa

NEEDS = "compares with PyTorch libraries of the extra 'bench': pip install -e \".[bench]\""
torch = pytest.importorskip("torch", reason=NEEDS)
pytest.importorskip("pytorch_metric_learning", reason=NEEDS)
retrieval = pytest.importorskip("torchmetrics.retrieval", reason=NEEDS)

from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator  # noqa: E402
from pytorch_metric_learning.utils.inference import CustomKNN  # noqa: E402
from torch.nn import functional as F  # noqa: E402

CLASSES, SEEDS = 3, (0, 1, 2)


class Case(NamedTuple):
    audio: np.ndarray
    visual: np.ndarray
    audio_labels: np.ndarray
    visual_labels: np.ndarray

    def sets(self):
        return self.audio, self.visual, self.audio_labels[:, None] == self.visual_labels[None, :]


def random_case(seed, n=8, m=11, d=5):
    """Each class at least twice on both sides, the rest at random, in any order."""
    # At most 25 rows: above, torch.cdist takes the root of a difference of matrix products.
    rng, twice = np.random.default_rng(seed), np.repeat(np.arange(CLASSES), 2)
    rest = [rng.integers(0, CLASSES, size - len(twice)) for size in (n, m)]
    labels = [rng.permutation([*twice, *drawn]) for drawn in rest]
    centres = 0.75 * rng.normal(size=(CLASSES, d))
    return Case(*(0.4 * (centres[y] + rng.normal(size=(len(y), d))) for y in labels), *labels)


@cache
def compiled(name, measure):
    def value(audio, visual, relevance, where, params):
        matrix = getattr(aa, measure)(audio, visual)
        return getattr(aa, f"{name}_loss")(matrix, relevance, where=where, **params)

    return jax.jit(jax.value_and_grad(value, (0, 1)))


def ours(name, measure, sets, params, where=None):
    """The value and its gradients in both sets; in one set, if it is given twice."""
    with oracles.x64():
        value, (in_audio, in_visual) = compiled(name, measure)(*sets, where, params)
        gradients = (in_audio + in_visual,) if sets[0] is sets[1] else (in_audio, in_visual)
        return float(value), *map(np.asarray, gradients)


def theirs(function, *embeddings):
    """The value of a function of tensors and its gradients."""
    leaves = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in embeddings]
    value = function(*leaves)
    value.backward()
    return value.item(), *(leaf.grad.numpy() for leaf in leaves)


def assert_parity(actual, expected):
    assert all(np.any(part) for part in expected)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-10, atol=0)
    for gradient, reference in zip(actual[1:], expected[1:], strict=True):
        atol = 1e-10 * np.abs(reference).max()
        np.testing.assert_allclose(gradient, reference, rtol=1e-8, atol=atol)


class MeanOverAnchors(reducers.BaseReducer):
    """The mean over each anchor's pairs or triplets, then over all anchors, as ours.

    PML averages over all tuples at once, in many losses over the non-zero ones alone. Its
    PerAnchorReducer takes the references for as many as the anchors and knows no triplets.
    """

    def element_reduction(self, losses, indices, embeddings, labels):
        return losses.mean()

    def over_anchors(self, losses, indices, embeddings, labels):
        totals = losses.new_zeros(len(embeddings)).index_add(0, indices[0], losses)
        return (totals / torch.bincount(indices[0], minlength=len(totals)).clamp(min=1)).mean()

    pos_pair_reduction = neg_pair_reduction = triplet_reduction = over_anchors


class Measure(NamedTuple):
    """One of our matrices, PML's object for it, and what a threshold of distances is in PML."""

    name: str
    distance: Any
    at: Callable = lambda threshold: threshold

    def loss(self, build, *params):
        return build(*params, distance=self.distance, reducer=MeanOverAnchors())


# LpDistance would normalise the embeddings. CosineSimilarity rises with likeness, and PML turns
# the sides of margins around with it: the cosine distance d is a similarity of 1 − d.
EUCLIDEAN = Measure("euclidean_distance", distances.LpDistance(normalize_embeddings=False))
COSINE = Measure("cosine_distance", distances.CosineSimilarity(), lambda distance: 1 - distance)
SIMILARITY = Measure("cosine_similarity", distances.CosineSimilarity())


class SquaredContrastive(losses.ContrastiveLoss):
    """PML leaves out the squares of Hadsell et al."""

    def get_per_pair_loss(self, *args):
        return super().get_per_pair_loss(*args) ** 2


def hard_triplet(measure, margin):
    loss = measure.loss(losses.TripletMarginLoss, margin)
    miner = miners.BatchHardMiner(distance=measure.distance)
    return lambda *anchors, **refs: loss(*anchors, miner(*anchors, **refs), **refs)


def semihard_triplet(measure, margin, audio, audio_labels, ref_emb, ref_labels):
    """PML mines semi-hard negatives for one positive per anchor and drops those without any.

    Hence one call per positive, with the anchor's other positives left out of the references, and a
    second miner, which takes the farthest negative, for those that the first one drops.
    """
    loss = measure.loss(losses.TripletMarginLoss, margin)
    miner = partial(miners.BatchEasyHardMiner, "hard", distance=measure.distance)
    semihard, farthest, rows = miner("semihard"), miner("easy"), []
    for anchor in zip(audio[:, None], audio_labels[:, None], strict=True):
        terms, is_positive = [], ref_labels == anchor[1]
        for positive in torch.nonzero(is_positive):
            columns = torch.cat([positive, torch.nonzero(~is_positive)[:, 0]])
            refs = {"ref_emb": ref_emb[columns], "ref_labels": ref_labels[columns]}
            mined = semihard(*anchor, **refs)
            mined = mined if len(mined[0]) else farthest(*anchor, **refs)
            terms.append(loss(*anchor, mined, **refs))
        rows.append(torch.stack(terms).mean())
    return torch.stack(rows).mean()


def smooth_ap(measure, temperature, audio, audio_labels, ref_emb, ref_labels):
    """AP with sigmoids, as in Brown et al., row by row: PML's knows one set only."""
    scores = F.normalize(audio) @ F.normalize(ref_emb).T
    relevant = (audio_labels[:, None] == ref_labels[None, :]).to(scores)
    gaps = scores[:, None, :] - scores[:, :, None]  # [i, p, j]
    above = torch.sigmoid(gaps / temperature) * (1 - torch.eye(len(ref_emb)).to(scores))
    rank, among = 1 + above.sum(2), 1 + (above * relevant[:, None, :]).sum(2)
    return (1 - (relevant * among / rank).sum(1) / relevant.sum(1)).mean()


def pml(name):
    return lambda measure, *params: measure.loss(getattr(losses, f"{name}Loss"), *params)


# Name, parameters, and what makes the peer from a measure and the parameters.
Margin, Lifted = losses.MarginLoss, losses.GeneralizedLiftedStructureLoss
ON_DISTANCES = (
    ("contrastive", {"margin": 0.9}, lambda m, x: m.loss(SquaredContrastive, m.at(0), m.at(x))),
    # PML adds both hinges per triplet: their mean over an anchor's triplets P×Q is that over P plus
    # that over Q. It holds beta in float32, hence one without rounding.
    ("margin", {"margin": 0.3, "beta": 0.875}, lambda m, x, b: m.loss(Margin, x, 0, m.at(b))),
    ("triplet", {"margin": 0.3}, pml("TripletMargin")),
    ("semihard_triplet", {"margin": 0.3}, partial(partial, semihard_triplet)),
    ("hard_triplet", {"margin": 0.1}, hard_triplet),
    # A margin at which rows of so few columns have hinges at 0 and above.
    ("lifted_structure", {"margin": -2.5}, lambda m, x: m.loss(Lifted, m.at(x), m.at(0))),
)
ON_SIMILARITIES = (
    ("ntxent", {"temperature": 0.07}, pml("NTXent")),
    ("supcon", {"temperature": 0.1}, pml("SupCon")),
    ("multi_similarity", {"alpha": 2.0, "beta": 50.0, "base": 0.5}, pml("MultiSimilarity")),
    ("circle", {"margin": 0.4, "gamma": 80.0}, pml("Circle")),
    ("smooth_ap", {"temperature": 0.05}, partial(partial, smooth_ap)),
)


class Parity(NamedTuple):
    """One of our losses on one of our matrices, and the peer that must agree."""

    name: str
    params: dict
    build: Callable
    measure: Measure

    def ours(self, sets, where=None, **changed):
        return ours(self.name, self.measure.name, sets, self.params | changed, where)

    def theirs(self, case):
        peer, (y, z) = self.build(self.measure, *self.params.values()), map(torch.tensor, case[2:])
        return theirs(lambda a, v: peer(a, y, ref_emb=v, ref_labels=z), *case[:2])


PARITIES = [Parity(*line, m) for line in ON_DISTANCES for m in (EUCLIDEAN, COSINE)]
PARITIES += [Parity(*line, SIMILARITY) for line in ON_SIMILARITIES]


def each_parity(*but):
    chosen = [p for p in PARITIES if p.name not in but]
    return pytest.mark.parametrize("parity", chosen, ids=lambda p: f"{p.name}-{p.measure.name}")


@each_parity()
@pytest.mark.parametrize("seed", SEEDS)
def test_two_sets(parity, seed):
    case = random_case(seed)
    expected = parity.theirs(case)
    assert_parity(parity.ours(case.sets()), expected)
    for name, number in parity.params.items():  # every parameter matters in this case
        with pytest.raises(AssertionError):
            assert_parity(parity.ours(case.sets(), **{name: number * (1 + 1e-6)}), expected)


@each_parity("semihard_triplet", "smooth_ap")
def test_one_set_against_itself(parity):
    """PML leaves out the diagonal by itself where it is given the same labels twice."""
    x, y = random_case(3)[1::2]
    peer, labels = parity.build(parity.measure, *parity.params.values()), torch.tensor(y)
    expected = theirs(lambda x: peer(x, labels, ref_emb=x, ref_labels=labels), x)
    sets = Case(x, x, y, y).sets()
    assert_parity(parity.ours(sets, where=~np.eye(len(x), dtype=bool)), expected)


# PML's margin loss skips such an anchor and its lifted structure loss keeps the negatives' part; of
# ours it is the other way round. The other two peers above are for anchors with positives.
@each_parity("margin", "lifted_structure", "semihard_triplet", "smooth_ap")
def test_an_anchor_without_positives_counts_in_the_mean(parity):
    case = random_case(3)
    case.audio_labels[2] = CLASSES
    assert_parity(parity.ours(case.sets()), parity.theirs(case))


@pytest.mark.parametrize("measure", [EUCLIDEAN, COSINE], ids=lambda measure: measure.name)
def test_the_cases_hold_what_the_losses_tell_apart(measure):
    """Positives with and without a semi-hard negative, and hinges of whole rows at 0 and above."""
    found = collections.defaultdict(list)
    for audio, visual, relevance in (random_case(seed).sets() for seed in SEEDS):
        matrix = np.asarray(getattr(aa, measure.name)(audio, visual))
        for row, relevant in zip(matrix, relevance, strict=True):
            found["semihard"] += [row[~relevant].max() > d for d in row[relevant]]
        for name, params, _ in ON_DISTANCES[-2:]:
            loss = getattr(aa, f"{name}_loss")
            found[name] += [row > 0 for row in loss(matrix, relevance, reduce_fn=None, **params)]
    assert all(0 < sum(kinds) < len(kinds) for kinds in found.values())


@pytest.mark.parametrize("classes", [CLASSES, CLASSES + 1])
def test_proxy_anchor(classes):
    """Also with a class without samples, where PML's default divides the positive term by 3."""
    (x, y), params = random_case(4)[1::2], {"margin": 0.1, "alpha": 32.0}
    proxies = np.random.default_rng(5).normal(size=(classes, 5))
    reducer = None if classes == CLASSES else reducers.MeanReducer()
    loss = losses.ProxyAnchorLoss(classes, 5, **params, reducer=reducer)
    del loss.proxies  # a parameter of the loss; here an argument takes its place

    def peer(proxies, samples):
        loss.proxies = proxies
        return loss(samples, torch.tensor(y))

    sets = Case(proxies, x, np.arange(classes), y).sets()
    expected = theirs(peer, proxies, x)
    assert_parity(ours("proxy_anchor", "cosine_similarity", sets, params), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_sigmoid_of_the_papers_program(seed):
    """Algorithm 1 of SigLIP, of several positives: its sum over pairs, by the number of anchors."""
    case, params = random_case(seed), {"temperature": 0.25, "bias": -1.5}
    audio, visual, relevance = case.sets()
    signs = torch.tensor(2.0 * relevance - 1)

    def peer(audio, visual):
        logits = F.normalize(audio) @ F.normalize(visual).T / 0.25 - 1.5
        return -F.logsigmoid(signs * logits).sum() / len(audio)

    expected = theirs(peer, audio, visual)
    assert_parity(ours("sigmoid", "cosine_similarity", case.sets(), params), expected)


@pytest.mark.parametrize("name", ["ArcFace", "CosFace"])
@pytest.mark.parametrize("margin", [0.25, 1.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_softmax_with_a_margin(name, margin, seed):
    """PML has one column of weights per class; its ArcFace takes degrees.

    The larger margin takes angles beyond 180 degrees.
    """
    case, scale = random_case(seed), 6.0
    samples, y = case.audio, case.audio_labels
    classes = np.random.default_rng(seed).normal(size=(CLASSES, 5))
    degrees = np.rad2deg(margin) if name == "ArcFace" else margin
    loss = getattr(losses, f"{name}Loss")(CLASSES, 5, margin=degrees, scale=scale)
    del loss.W  # a parameter of the loss; here an argument takes its place

    def peer(samples, classes):
        loss.W = classes.T
        return loss(samples, torch.tensor(y))

    sets = Case(samples, classes, y, np.arange(CLASSES)).sets()
    params = {"margin": margin, "scale": scale}
    expected = theirs(peer, samples, classes)
    assert_parity(ours(name.lower(), "cosine_similarity", sets, params), expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("seed", SEEDS)
def test_multi_similarity_mining(epsilon, seed):
    case = random_case(seed)
    miner = miners.MultiSimilarityMiner(epsilon)
    tensors = [torch.tensor(array) for array in case]
    audio, visual, audio_labels, visual_labels = tensors
    mined = miner(audio, audio_labels, visual, visual_labels)
    expected = np.zeros((len(audio), len(visual)), bool)
    for rows, columns in (mined[:2], mined[2:]):
        expected[rows, columns] = True
    audio, visual, relevance = case.sets()
    with oracles.x64():
        similarities = aa.cosine_similarity(audio, visual)
        actual = aa.mine_multi_similarity(similarities, relevance, epsilon=epsilon)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(actual, expected)


def test_both_directions_are_the_loss_of_clip():
    audio, visual = random_case(7, n=8, m=8)[:2]
    rows = torch.arange(8)

    def peer(audio, visual):
        logits = F.normalize(audio) @ F.normalize(visual).T / 0.07
        return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2

    def value(audio, visual):
        similarities = aa.cosine_similarity(audio, visual)
        return aa.symmetric(aa.ntxent_loss)(similarities, np.eye(8, dtype=bool))

    with oracles.x64():
        actual, gradients = jax.value_and_grad(value, (0, 1))(audio, visual)
        actual = float(actual), *map(np.asarray, gradients)
    assert_parity(actual, theirs(peer, audio, visual))


def test_smooth_ap_of_pml(monkeypatch):
    """PML's is of one set, sorted by class, each query in its own gallery.

    It takes the size of the classes for their number, so that both must be equal, and collects its
    values in a float32 made by torch.zeros.
    """
    x, y = np.random.default_rng(6).normal(size=(16, 5)), np.repeat(np.arange(4), 4)
    monkeypatch.setattr(torch, "zeros", partial(torch.zeros, dtype=torch.float64))
    expected = theirs(lambda x: losses.SmoothAPLoss(0.05)(x, torch.tensor(y)), x)
    sets = Case(x, x, y, y).sets()
    assert_parity(ours("smooth_ap", "cosine_similarity", sets, {"temperature": 0.05}), expected)


def test_infonce_is_the_cross_entropy_of_the_logits():
    audio, visual = random_case(7)[:2]
    rows, sets = torch.arange(len(audio)), (audio, visual, np.eye(8, 11, dtype=bool))
    expected = theirs(
        lambda a, v: F.cross_entropy(F.normalize(a) @ F.normalize(v).T / 0.07, rows), audio, visual
    )
    assert_parity(ours("ntxent", "cosine_similarity", sets, {"temperature": 0.07}), expected)


@pytest.mark.parametrize("name", ["triplet", "semihard_triplet", "hard_triplet"])
def test_single_triplets(name):
    """`where` leaves row i column i, its positive, and column 8 + i, its negative."""
    audio, visual = random_case(8, n=8, m=16)[:2]
    loss = torch.nn.TripletMarginLoss(margin=0.3, eps=0)  # eps would move one of the points
    expected = theirs(lambda a, v: loss(a, v[:8], v[8:]), audio, visual)
    relevance = np.eye(8, 16, dtype=bool)
    where, sets = relevance | np.eye(8, 16, k=8, dtype=bool), (audio, visual, relevance)
    assert_parity(ours(name, "euclidean_distance", sets, {"margin": 0.3}, where), expected)


def per_query(metric, scores, relevance, **options):
    """What torchmetrics has before it averages over the queries."""
    queries = torch.arange(len(scores))[:, None].expand(scores.shape)
    metric = metric(aggregation=lambda values, dim: values, **options)
    # torchmetrics takes what has no positive score for not retrieved.
    return metric(torch.tensor(scores + 2), torch.tensor(relevance), indexes=queries).numpy()


@pytest.mark.parametrize("seed", SEEDS)
def test_metrics_of_torchmetrics(seed):
    """To the float32 in which torchmetrics divides; a query without relevant items scores 0."""
    case = random_case(seed, n=9, m=20)
    case.audio_labels[4] = CLASSES
    audio, visual, relevance = case.sets()
    with oracles.x64():
        scores = np.asarray(aa.cosine_similarity(audio, visual))
    compared = [
        (aa.average_precision, retrieval.RetrievalMAP, {}, {}),
        (aa.r_precision, retrieval.RetrievalRPrecision, {}, {}),
        (aa.reciprocal_rank, retrieval.RetrievalMRR, {}, {}),
    ]
    for k in (1, 2, 5, 20):
        compared += [(aa.precision_at, retrieval.RetrievalPrecision, {"k": k}, {"top_k": k})]
        compared += [(aa.recall_at, retrieval.RetrievalHitRate, {"k": k}, {"top_k": k})]
        compared += [(aa.fraction_recall_at, retrieval.RetrievalRecall, {"k": k}, {"top_k": k})]
        compared += [(aa.ndcg_at, retrieval.RetrievalNormalizedDCG, {"k": k}, {"top_k": k})]
    for metric, peer, own, others in compared:
        expected = per_query(peer, scores, relevance, **others)
        assert expected[4] == 0
        np.testing.assert_allclose(metric(scores, relevance, **own), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_metrics_of_pml(seed):
    """Every class is in the gallery: PML leaves out queries without relevant items, ours are 0."""
    case = random_case(seed, n=9, m=20)
    audio, visual, relevance = case.sets()
    with oracles.x64():
        scores = aa.cosine_similarity(audio, visual)
        own = {"mean_average_precision": float(aa.mean_average_precision(scores, relevance))}
        own["precision_at_1"] = float(aa.precision_at(scores, relevance, k=1).mean())
        own["r_precision"] = float(aa.r_precision(scores, relevance).mean())
        at_r = float(aa.average_precision_at_r(scores, relevance).mean())
        own["mean_average_precision_at_r"] = at_r
    knn = CustomKNN(distances.CosineSimilarity())
    calculator = AccuracyCalculator(tuple(own), k=None, knn_func=knn)  # k: the whole ranking
    expected = calculator.get_accuracy(audio, case.audio_labels, visual, case.visual_labels)
    assert own == pytest.approx(expected, rel=1e-10, abs=0)
