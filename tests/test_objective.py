"""The objective: its terms against float64 loops, its switches one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

import aadml_jax as aa
from aadml_jax.objective import AnchorAware, aadml_objective, class_proxy_objective

RNG = np.random.default_rng(0)
LABELS = np.array([0, 2, 1, 0, 0, 1, 2])
AUDIO, VISUAL = RNG.normal(size=(2, 7, 3))
MODALITIES = {"audio": AUDIO, "visual": VISUAL}
OWN = {
    "contrastive": {"margin": 1.0},
    "triplet": {"margin": 0.3},
    "semihard_triplet": {"margin": 1.0},
    "hard_triplet": {"margin": 1.0},
    "lifted_structure": {"margin": 1.0},
    "margin": {"margin": 0.25, "beta": 0.75},
    "ntxent": {"temperature": 0.5},
    "supcon": {"temperature": 0.5},
    "multi_similarity": {"alpha": 2.0, "beta": 10.0, "base": 0.5},
    "circle": {"margin": 0.4, "gamma": 1.0},
    "proxy_anchor": {"margin": 0.1, "alpha": 4.0},
    "smooth_ap": {"temperature": 0.05},
}
ROW_LOSSES = {name: getattr(oracles, f"{name}_row") for name in OWN}
ON_DISTANCES = (
    "contrastive",
    "triplet",
    "semihard_triplet",
    "hard_triplet",
    "lifted_structure",
    "margin",
)
COMPARE = {
    "cosine": aa.cosine_distance,
    "euclidean": aa.euclidean_distance,
    "squared_euclidean": aa.squared_euclidean_distance,
}
LABEL_LOSSES = {
    "squared": aa.squared_label_loss,
    "cross_entropy": aa.cross_entropy_label_loss,
}
PAIRWISE = {
    "cosine": lambda a, b: 1 - oracles.pairwise(oracles.cosine, a, b),
    "euclidean": lambda a, b: oracles.pairwise(oracles.euclidean, a, b),
    "squared_euclidean": lambda a, b: oracles.pairwise(oracles.squared_euclidean, a, b),
}


def metric_loss(name, **parameters):
    return functools.partial(getattr(aa, f"{name}_loss"), **(OWN[name] | parameters))


def objective_of(loss="triplet", distance="cosine", label_loss="cross_entropy", **options):
    parameters = {name: options.pop(name) for name in OWN[loss] if name in options}
    return functools.partial(
        aadml_objective,
        metric_loss=metric_loss(loss, **parameters),
        compare=COMPARE[distance] if loss in ON_DISTANCES else aa.cosine_similarity,
        label_loss=LABEL_LOSSES[label_loss],
        **options,
    )


@functools.cache
def parts_of(**options):
    total, parts = jax.jit(objective_of(**options))(AUDIO, VISUAL, LABELS)
    assert float(total) == float(parts["loss"])
    return {name: float(value) for name, value in parts.items()}


def direction(
    anchors, references, *, loss="triplet", distance="cosine", where=None, classes=LABELS, **params
):
    relevance = classes[:, None] == LABELS[None, :]
    matrix = PAIRWISE[distance](anchors, references)
    if loss not in ON_DISTANCES:
        matrix = 1 - matrix
    return np.mean(
        oracles.by_row(ROW_LOSSES[loss], matrix, relevance, where, **(OWN[loss] | params))
    )


def proxies(embeddings, **options):
    options = {"num_neighbors": 3, **options}
    return oracles.proxies(embeddings, LABELS, **options)


@pytest.mark.parametrize(
    ("loss", "distance"), [("hard_triplet", "euclidean"), ("contrastive", "squared_euclidean")]
)
def test_metric_loss_compares_proxies_with_plain_embeddings_of_the_other_modality(loss, distance):
    options = {"loss": loss, "distance": distance, "margin": 0.7}
    parts = parts_of(**options)
    to_visual = direction(proxies(AUDIO), VISUAL, **options)
    to_audio = direction(proxies(VISUAL), AUDIO, **options)
    assert parts["metric_loss_audio_to_visual"] == pytest.approx(to_visual, rel=1e-5)
    assert parts["metric_loss_visual_to_audio"] == pytest.approx(to_audio, rel=1e-5)
    assert parts["metric_loss"] == pytest.approx(to_visual + to_audio, rel=1e-5)


@pytest.mark.parametrize("attention", ["neighbor", "channel"])
@pytest.mark.parametrize("same_class", [True, False])
def test_anchor_aware_options_reach_the_proxies(attention, same_class):
    options = {"num_neighbors": 2, "attention": attention, "same_class": same_class}
    expected = direction(proxies(AUDIO, **options), VISUAL)
    parts = parts_of(proxies=AnchorAware(**options))
    assert parts["metric_loss_audio_to_visual"] == pytest.approx(expected, rel=1e-5)


def test_neighbours_and_temperature_reach_the_proxies():
    expected = direction(proxies(AUDIO, references=VISUAL, temperature=0.2), VISUAL)
    parts = parts_of(proxies=AnchorAware(neighbors_from="other", temperature=0.2))
    assert parts["metric_loss_audio_to_visual"] == pytest.approx(expected, rel=1e-5)
    expected = direction(proxies(VISUAL, references=AUDIO, temperature=0.2), AUDIO)
    assert parts["metric_loss_visual_to_audio"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["triplet", "supcon"])
def test_proxies_beside_the_anchors_and_on_both_sides(loss):
    plain, aware = direction(AUDIO, VISUAL, loss=loss), direction(proxies(AUDIO), VISUAL, loss=loss)
    beside = parts_of(loss=loss, proxies=AnchorAware(role="beside"))["metric_loss_audio_to_visual"]
    assert beside == pytest.approx((plain + aware) / 2, rel=1e-5)
    both = parts_of(loss=loss, proxies=AnchorAware(role="both_sides"), intra_modal=True)
    expected = direction(proxies(AUDIO), proxies(VISUAL), loss=loss)
    assert both["metric_loss_audio_to_visual"] == pytest.approx(expected, rel=1e-5)
    expected = direction(proxies(AUDIO), proxies(AUDIO), loss=loss, where=~np.eye(7, dtype=bool))
    assert both["metric_loss_audio_to_audio"] == pytest.approx(expected, rel=1e-5)


def test_proxy_anchor_beside_its_aware_samples():
    expected = [
        direction(np.eye(3), samples, loss="proxy_anchor", classes=np.arange(3))
        for samples in (AUDIO, proxies(AUDIO))
    ]
    objective = functools.partial(
        class_proxy_objective,
        metric_loss=metric_loss("proxy_anchor"),
        proxies=AnchorAware(role="beside"),
    )
    _, parts = jax.jit(objective)(AUDIO, VISUAL, LABELS)
    assert parts["metric_loss_classes_to_audio"] == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("anchor_aware", [True, pytest.param(False, marks=pytest.mark.full)])
@pytest.mark.parametrize("loss", sorted(set(OWN) - {"proxy_anchor"}))
def test_every_loss_takes_proxies_with_parameters_of_its_own(loss, anchor_aware):
    parts = parts_of(loss=loss, proxies=AnchorAware() if anchor_aware else None)
    anchors = {name: proxies(x) if anchor_aware else x for name, x in MODALITIES.items()}
    to_visual = direction(anchors["audio"], VISUAL, loss=loss)
    to_audio = direction(anchors["visual"], AUDIO, loss=loss)
    assert to_visual > 0 and to_audio > 0
    assert parts["metric_loss_audio_to_visual"] == pytest.approx(to_visual, rel=2e-5)
    assert parts["metric_loss_visual_to_audio"] == pytest.approx(to_audio, rel=2e-5)


@pytest.mark.parametrize("anchor_aware", [False, True])
@pytest.mark.parametrize("class_proxies", [None, RNG.normal(size=(3, 3))])
def test_proxy_anchor_compares_classes_with_aware_samples(anchor_aware, class_proxies):
    objective = functools.partial(
        class_proxy_objective,
        metric_loss=metric_loss("proxy_anchor"),
        class_proxies=class_proxies,
        proxies=AnchorAware() if anchor_aware else None,
    )
    total, parts = jax.jit(objective)(AUDIO, VISUAL, LABELS)
    expected = 0.0
    for name, samples in MODALITIES.items():
        term = direction(
            np.eye(3) if class_proxies is None else class_proxies,
            proxies(samples) if anchor_aware else samples,
            loss="proxy_anchor",
            classes=np.arange(3),
        )
        assert float(parts[f"metric_loss_classes_to_{name}"]) == pytest.approx(term, rel=1e-5)
        expected += term
    assert float(parts["metric_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(total) == pytest.approx(expected + float(parts["label_loss"]), rel=1e-5)


def test_multi_hot_labels_make_a_sample_relevant_to_each_of_its_classes():
    both = np.array([[1, 1, 0]] * 3 + [[0, 0, 1]] * 4)
    objective = functools.partial(
        class_proxy_objective, metric_loss=metric_loss("proxy_anchor"), proxies=None
    )
    _, parts = jax.jit(objective)(AUDIO, VISUAL, both)
    similarities = oracles.pairwise(oracles.cosine, np.eye(3), AUDIO)
    rows = oracles.by_row(oracles.proxy_anchor_row, similarities, both.T, **OWN["proxy_anchor"])
    assert float(parts["metric_loss_classes_to_audio"]) == pytest.approx(rows.mean(), rel=1e-5)


# Clips 0 and 1 share a class, so do 1 and 2, but not 0 and 2; class 2 is the only one of clip 6.
SEVERAL = np.array(
    [[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]], bool
)


def test_metric_and_label_losses_of_several_classes_equal_loops():
    relevance = np.array([[oracles.share_a_class(a, b) for b in SEVERAL] for a in SEVERAL])
    aware = oracles.proxies(AUDIO, SEVERAL, num_neighbors=3)
    _, parts = jax.jit(objective_of(label_loss="squared"))(AUDIO, VISUAL, SEVERAL)
    rows = oracles.by_row(
        oracles.triplet_row, PAIRWISE["cosine"](aware, VISUAL), relevance, **OWN["triplet"]
    )
    assert float(parts["metric_loss_audio_to_visual"]) == pytest.approx(rows.mean(), rel=1e-5)
    squares = sum(
        sum((AUDIO[i, c] - (1 if SEVERAL[i, c] else 0)) ** 2 for c in range(3)) for i in range(7)
    )
    assert float(parts["label_loss_audio"]) == pytest.approx(squares / 7, rel=1e-5)


def test_class_proxies_of_any_place_attract_all_samples_of_their_class():
    class_proxies = np.random.default_rng(4).normal(size=(3, 3))
    objective = functools.partial(
        class_proxy_objective,
        metric_loss=metric_loss("proxy_anchor"),
        class_proxies=class_proxies,
    )
    _, parts = jax.jit(objective)(AUDIO, VISUAL, SEVERAL)
    aware = oracles.proxies(VISUAL, SEVERAL, num_neighbors=3)
    rows = oracles.by_row(
        oracles.proxy_anchor_row,
        oracles.pairwise(oracles.cosine, class_proxies, aware),
        SEVERAL.T,
        **OWN["proxy_anchor"],
    )
    assert float(parts["metric_loss_classes_to_visual"]) == pytest.approx(rows.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("proxies", "line"),
    [
        ({"temperature": np.float64(0)}, "temperature must be above 0; got 0"),
        ({"temperature": np.nan}, "temperature must be above 0; got nan"),
        ({"num_neighbors": 0}, "num_neighbors must be an integer of at least 1; got 0$"),
        ({"num_neighbors": 4, "max_neighbors": 3}, "num_neighbors=4 exceeds max_neighbors=3"),
    ],
)
def test_numbers_that_cannot_be_are_refused_when_the_proxies_are_described(proxies, line):
    with pytest.raises(ValueError, match=line):
        AnchorAware(**proxies)


@pytest.mark.parametrize(
    ("loss", "parameters", "line"),
    [
        ("triplet", {"margin": np.nan}, "margin must be finite; got nan"),
        ("triplet", {"margin": np.float32(np.inf)}, "margin must be finite; got inf"),
        ("ntxent", {"temperature": 0.0}, r"temperature must be above 0; got 0\.0"),
        ("circle", {"gamma": np.float32(-1)}, r"gamma must be above 0; got -1\.0"),
        ("multi_similarity", {"beta": jnp.float32(0)}, "beta must be above 0; got 0"),
        ("multi_similarity", {"base": np.nan}, "base must be finite; got nan"),
        ("triplet", {"margin": 10**400}, "margin must be finite; got inf"),
        ("margin", {"beta": -np.inf}, "beta must be finite; got -inf"),
    ],
)
def test_numbers_that_a_loss_refuses_are_refused(loss, parameters, line):
    with pytest.raises(ValueError, match=line):
        jax.eval_shape(objective_of(loss, **parameters), AUDIO, VISUAL, LABELS)


@pytest.mark.parametrize("objective", [aadml_objective, class_proxy_objective])
@pytest.mark.parametrize(
    ("weights", "line"),
    [
        ({"label_weight": -1}, "label_weight must be at least 0; got -1"),
        ({"metric_weight": np.nan}, "metric_weight must be at least 0; got nan"),
        ({"metric_weight": np.inf}, "metric_weight must be finite; got inf"),
        ({"label_weight": "1"}, "label_weight must be a real number; got '1'"),
    ],
)
def test_weights_that_cannot_be_are_refused(objective, weights, line):
    with pytest.raises(ValueError, match=line):
        jax.eval_shape(functools.partial(objective, **weights), AUDIO, VISUAL, LABELS)


@pytest.mark.parametrize("objective", [aadml_objective, class_proxy_objective])
def test_a_block_of_no_rows_is_refused(objective):
    with pytest.raises(ValueError, match="block_size must be an integer of at least 1; got 0"):
        objective(AUDIO, VISUAL, LABELS, proxies=None, block_size=0)


def test_the_alpha_of_proxy_anchor_must_be_above_zero():
    objective = functools.partial(
        class_proxy_objective, metric_loss=metric_loss("proxy_anchor", alpha=0)
    )
    with pytest.raises(ValueError, match="alpha must be above 0; got 0"):
        jax.eval_shape(objective, AUDIO, VISUAL, LABELS)


def test_an_integer_of_any_size_is_a_number():
    assert parts_of(margin=10**30)["metric_loss"] == pytest.approx(2e30, rel=1e-5)


def test_the_beta_of_the_margin_loss_is_a_distance_and_may_be_zero():
    assert np.isfinite(parts_of(loss="margin", beta=0.0)["loss"])
    assert np.isfinite(parts_of(loss="margin", beta=-0.5, margin=0, label_weight=0)["loss"])


@pytest.mark.parametrize("label_loss", ["squared", "cross_entropy"])
def test_a_clip_of_no_class_is_compared_with_nothing(label_loss):
    labels = np.eye(3, dtype=bool)[LABELS]
    labels[2] = False
    _, parts = aadml_objective(
        AUDIO, VISUAL, labels, label_loss=LABEL_LOSSES[label_loss], proxies=None
    )
    log_posteriors = AUDIO - np.log(np.exp(AUDIO).sum(axis=1, keepdims=True))
    expected = {
        "squared": np.sum((AUDIO - labels) ** 2) / 7,
        "cross_entropy": -np.sum(log_posteriors * labels) / 7,
    }
    assert float(parts["label_loss_audio"]) == pytest.approx(expected[label_loss], rel=1e-5)
    relevance = labels.astype(int) @ labels.T.astype(int) > 0
    rows = oracles.by_row(
        oracles.triplet_row, PAIRWISE["cosine"](AUDIO, VISUAL), relevance, **OWN["triplet"]
    )
    assert rows[2] == 0
    assert float(parts["metric_loss_audio_to_visual"]) == pytest.approx(rows.mean(), rel=1e-5)


OF_NTXENT = {"metric_loss": metric_loss("ntxent"), "compare": aa.cosine_similarity}


@pytest.mark.parametrize(
    ("objective", "grows"),
    [
        (aadml_objective, False),
        (functools.partial(aadml_objective, proxies=AnchorAware(attention="channel")), False),
        (functools.partial(aadml_objective, proxies=AnchorAware(neighbors_from="other")), False),
        (functools.partial(aadml_objective, compare=aa.euclidean_distance), True),
        (functools.partial(aadml_objective, intra_modal=True, **OF_NTXENT), False),
        (class_proxy_objective, False),
    ],
    ids=["default", "channel", "other", "euclidean", "ntxent", "classes"],
)
def test_outputs_whose_squares_overflow(objective, grows):
    # The farther the outputs, the more the loss is that of their limit, times the length.
    sides = [x / np.abs(x).max() for x in (AUDIO, VISUAL)]

    @jax.jit
    def run(audio, visual):
        def parts(audio):
            total, parts = objective(audio, visual, LABELS)
            return total, parts["metric_loss"]

        return jax.value_and_grad(parts, has_aux=True)(audio)

    (_, expected), slope = run(*((x * 1e15).astype(np.float32) for x in sides))
    assert np.any(slope)
    for length in (1e19, 1e30):
        (total, metric), gradient = run(*((x * length).astype(np.float32) for x in sides))
        by_length = length / 1e15 if grows else 1
        assert np.isfinite(total)
        assert float(metric) == pytest.approx(float(expected) * by_length, rel=1e-3, abs=1e-3)
        np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-6)


def test_a_class_whose_probability_is_nothing_does_not_break_the_others_cross_entropy():
    audio = np.array([[3e38, -3e38, 0]] * 7, np.float32)
    loss = jax.jit(
        jax.value_and_grad(lambda x: aadml_objective(x, VISUAL, np.zeros(7, int))[1]["label_loss"])
    )
    value, gradient = loss(audio)
    of_visual = float(aadml_objective(VISUAL, VISUAL, np.zeros(7, int))[1]["label_loss_audio"])
    assert float(value) == pytest.approx(of_visual, rel=1e-5)  # that of audio is 0
    assert not np.any(gradient)


def test_class_proxies_that_do_not_fit_raise():
    objective = functools.partial(class_proxy_objective, metric_loss=metric_loss("proxy_anchor"))
    with pytest.raises(ValueError, match=r"class_proxies must be \(3, 3\); got \(3, 2\)"):
        objective(AUDIO, VISUAL, LABELS, class_proxies=np.ones((3, 2)))
    with pytest.raises(ValueError, match="role='both_sides' needs samples on both sides"):
        objective(AUDIO, VISUAL, LABELS, proxies=AnchorAware(role="both_sides"))


def test_any_function_of_distances_and_relevance_is_a_metric_loss():
    """Mean over the pairs of (d − 1)² if relevant, else |d|³, of a comparison made up here."""

    def compare(anchors, references):
        return jnp.sum(jnp.abs(anchors[:, None] - references[None]), axis=-1)

    def own_loss(distances, relevance, *, where=None):
        assert where is None or where.dtype == bool
        values = jnp.where(relevance, (distances - 1) ** 2, jnp.abs(distances) ** 3)
        return jnp.mean(values, where=where)

    def own_label_loss(outputs, targets):
        return jnp.mean(outputs * targets)

    _, parts = aadml_objective(
        AUDIO,
        VISUAL,
        LABELS,
        metric_loss=own_loss,
        compare=compare,
        label_loss=own_label_loss,
        proxies=None,
        intra_modal=True,
    )

    def pairs(a, b, others):
        for i, j in others:
            distance = sum(abs(a[i, c] - b[j, c]) for c in range(3))
            yield (distance - 1) ** 2 if LABELS[i] == LABELS[j] else distance**3

    every = [(i, j) for i in range(7) for j in range(7)]
    others = [(i, j) for i, j in every if i != j]
    expected = {
        "metric_loss_audio_to_visual": np.mean(list(pairs(AUDIO, VISUAL, every))),
        "metric_loss_visual_to_visual": np.mean(list(pairs(VISUAL, VISUAL, others))),
        "label_loss_audio": sum(AUDIO[i, LABELS[i]] for i in range(7)) / 21,
    }
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-5)


def test_without_anchor_awareness_the_anchors_are_the_embeddings():
    parts = parts_of(proxies=None)
    assert parts["metric_loss_audio_to_visual"] == pytest.approx(direction(AUDIO, VISUAL), rel=1e-5)
    assert parts == parts_of(proxies=AnchorAware(num_neighbors=1))


def test_intra_modal_adds_two_directions_without_the_anchors_own_column():
    parts = parts_of(intra_modal=True)
    others = ~np.eye(7, dtype=bool)
    expected = {
        "audio_to_audio": direction(proxies(AUDIO), AUDIO, where=others),
        "visual_to_visual": direction(proxies(VISUAL), VISUAL, where=others),
    }
    for name, value in expected.items():
        assert parts[f"metric_loss_{name}"] == pytest.approx(value, rel=1e-5)
    inter = parts_of()["metric_loss"]
    assert parts["metric_loss"] == pytest.approx(inter + sum(expected.values()), rel=1e-5)


def test_squared_label_loss_sums_over_classes_and_averages_over_the_batch():
    parts = parts_of(label_loss="squared")
    for name, outputs in (("audio", AUDIO), ("visual", VISUAL)):
        expected = sum(
            sum((outputs[i, c] - (LABELS[i] == c)) ** 2 for c in range(3)) for i in range(7)
        )
        assert parts[f"label_loss_{name}"] == pytest.approx(expected / 7, rel=1e-5)


def test_cross_entropy_label_loss():
    expected = 0.0
    for outputs in (AUDIO, VISUAL):
        for i in range(7):
            posterior = np.exp(outputs[i]) / np.exp(outputs[i]).sum()
            expected -= np.log(posterior[LABELS[i]]) / 7
    assert parts_of(label_loss="cross_entropy")["label_loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_scale_their_sums():
    parts = parts_of(label_weight=0.25, metric_weight=3.0)
    expected = 0.25 * parts["label_loss"] + 3.0 * parts["metric_loss"]
    assert parts["loss"] == pytest.approx(expected, rel=1e-6)
    plain = parts_of()
    assert parts["label_loss"] == plain["label_loss"]
    assert parts["metric_loss"] == plain["metric_loss"]


def test_multi_hot_labels_of_one_class_equal_class_numbers():
    one_hot = np.eye(3, dtype=bool)[LABELS]
    for label_loss in LABEL_LOSSES:
        total, _ = aadml_objective(
            AUDIO,
            VISUAL,
            one_hot,
            metric_loss=metric_loss("contrastive"),
            label_loss=LABEL_LOSSES[label_loss],
        )
        expected = parts_of(label_loss=label_loss, loss="contrastive")["loss"]
        assert float(total) == pytest.approx(expected, rel=1e-5)


def test_multi_hot_cross_entropy_shares_the_target_among_the_classes():
    both = np.array([[1, 1, 0]] * 7)
    _, parts = aadml_objective(AUDIO, VISUAL, both, metric_loss=metric_loss("triplet"))
    log_posteriors = AUDIO - np.log(np.exp(AUDIO).sum(axis=1, keepdims=True))
    expected = -np.mean((log_posteriors[:, 0] + log_posteriors[:, 1]) / 2)
    assert float(parts["label_loss_audio"]) == pytest.approx(expected, rel=1e-5)


def test_gradient_equals_finite_differences():
    with oracles.x64():

        @jax.jit
        def total(audio):
            return aadml_objective(audio, VISUAL, LABELS, metric_loss=metric_loss("triplet"))[0]

        check_grads(total, (jnp.asarray(AUDIO),), order=1, modes=("fwd", "rev"))


def test_margin_can_be_traced():
    def total(margin):
        loss = metric_loss("triplet", margin=margin)
        return aadml_objective(AUDIO, VISUAL, LABELS, metric_loss=loss)[0]

    margins = jnp.array([0.1, 1.0])
    values = jax.jit(jax.vmap(total))(margins)
    for margin, value in zip((0.1, 1.0), values, strict=True):
        assert float(value) == pytest.approx(parts_of(margin=margin)["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("field", "known"),
    [("attention", "channel"), ("neighbors_from", "own"), ("role", "in_place")],
)
def test_unknown_names_raise_and_list_the_known_ones(field, known):
    with pytest.raises(ValueError, match=rf"{field} must be one of .*'{known}'.*got 'nope'"):
        AnchorAware(**{field: "nope"})


@pytest.mark.parametrize(
    ("visual_shape", "labels_shape"), [((7, 4), (7,)), ((7, 3), (6,)), ((7, 3), (7, 2))]
)
def test_shapes_that_do_not_fit_raise(visual_shape, labels_shape):
    with pytest.raises(ValueError, match=r"\(7, "):
        aadml_objective(
            AUDIO,
            np.ones(visual_shape),
            np.ones(labels_shape, int),
            metric_loss=metric_loss("triplet"),
        )


@pytest.mark.parametrize("is_traced", [False, True])
def test_narrow_labels_count_classes_beyond_their_width(is_traced):
    outputs = np.random.default_rng(0).normal(size=(2, 4, 300)).astype(np.float32)
    labels = np.array([0, 5, 44, 100])
    in_each_dtype = [labels.astype(dtype) for dtype in (np.int32, np.uint8, np.int8, np.int16)]

    def run(in_each_dtype):
        return [class_proxy_objective(*outputs, x, proxies=None)[1] for x in in_each_dtype]

    if is_traced:
        wide, *narrow = jax.jit(run)(in_each_dtype)
    else:
        wide, *narrow = jax.jit(lambda: run(in_each_dtype))()
    log_posteriors = outputs[0] - np.log(np.exp(outputs[0]).sum(axis=1, keepdims=True))
    expected = -np.mean([log_posteriors[i, label] for i, label in enumerate(labels)])
    for parts in narrow:
        assert float(parts["label_loss_audio"]) == pytest.approx(expected, rel=1e-5)
        assert float(parts["metric_loss"]) == float(wide["metric_loss"])


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "triplet"},
        {"loss": "semihard_triplet", "intra_modal": True},
        {"loss": "smooth_ap", "proxies": None},
        {"loss": "supcon", "proxies": AnchorAware(role="beside", neighbors_from="other")},
        {"loss": "contrastive", "proxies": AnchorAware(role="both_sides", attention="channel")},
    ],
    ids=lambda options: options["loss"],
)
def test_stacked_modalities_give_the_same_parts_and_gradient(options):
    def run(stacked):
        objective = functools.partial(objective_of(**options), stacked=stacked)
        return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))(
            *(jnp.asarray(x, jnp.float32) for x in (AUDIO, VISUAL)), LABELS
        )

    ((_, parts), gradient), ((_, expected), wanted) = run(True), run(False)
    assert list(parts) == list(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7),
        (parts, gradient),
        (expected, wanted),
    )


def test_stacked_modalities_give_the_same_with_class_proxies():
    objective = functools.partial(class_proxy_objective, proxies=AnchorAware(role="beside"))
    parts = jax.jit(functools.partial(objective, stacked=True))(AUDIO, VISUAL, LABELS)[1]
    expected = jax.jit(objective)(AUDIO, VISUAL, LABELS)[1]
    assert list(parts) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=2e-6)


@pytest.mark.parametrize("block_size", [1, 4, 5])
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "triplet"},
        {"loss": "semihard_triplet", "intra_modal": True, "proxies": None},
        {"loss": "supcon", "proxies": AnchorAware(role="beside", neighbors_from="other")},
        {"loss": "contrastive", "proxies": AnchorAware(role="both_sides"), "intra_modal": True},
    ],
    ids=lambda options: options["loss"],
)
def test_blocks_of_anchors_give_the_same_parts_and_gradient(options, block_size):
    def run(block_size):
        objective = functools.partial(objective_of(**options), block_size=block_size)
        return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))(
            *(jnp.asarray(x, jnp.float32) for x in (AUDIO, VISUAL)), LABELS
        )

    assert len(AUDIO) % 5 != 0 or len(AUDIO) % 4 != 0  # what no whole block is left for
    ((_, parts), gradient), ((_, expected), wanted) = run(block_size), run(None)
    assert list(parts) == list(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-6, atol=2e-7),
        (parts, gradient),
        (expected, wanted),
    )


@pytest.mark.parametrize("objective", [aadml_objective, class_proxy_objective])
def test_blocks_of_anchors_bound_the_memory(objective):
    outputs, labels = jnp.zeros((512, 10)), jnp.arange(512) % 10
    small, large = (
        oracles.temporary_bytes(
            jax.grad(lambda a, b, n=n: objective(a, b, labels, block_size=n)[0]), outputs, outputs
        )
        for n in (32, None)
    )
    assert large > 4 * 512**2  # one matrix of the whole batch
    assert small < 4 * 512**2
