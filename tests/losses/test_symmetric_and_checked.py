"""Functions of a loss: both of its directions, and a check of the matrix that it is given."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import aadml_jax as aa

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(6, 4)).astype(np.float32)
OTHERS = RNG.normal(size=(6, 4)).astype(np.float32)
LABELS = np.array([0, 0, 1, 1, 2, 2])
SAME = np.asarray(aa.same_label(LABELS, LABELS))
NOT_SELF = ~np.eye(6, dtype=bool)


def test_both_directions_are_averaged():
    matrix, relevance, where = oracles.pair_case(2, 5, 7, -1.0, 1.0)
    loss = functools.partial(aa.ntxent_loss, temperature=0.3)
    rows = oracles.by_row(oracles.ntxent_row, matrix, relevance, where, temperature=0.3)
    columns = oracles.by_row(oracles.ntxent_row, matrix.T, relevance.T, where.T, temperature=0.3)
    expected = (rows.mean() + columns.mean()) / 2
    assert rows.mean() != pytest.approx(columns.mean(), rel=1e-2)
    actual = jax.jit(aa.symmetric(loss))(matrix, relevance, where=where)
    assert float(actual) == pytest.approx(expected, rel=1e-5)
    as_lists = aa.symmetric(loss)(matrix.tolist(), relevance.tolist(), where=where.tolist())
    assert float(as_lists) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_clip_is_that_of_its_paper():
    """The program of the paper's figure 3: cross-entropy of the logits' rows and columns."""
    logits = np.asarray(aa.cosine_similarity(POINTS, OTHERS), np.float64) / 0.07
    both = [np.mean(np.log(np.exp(x).sum(axis=1)) - np.diag(x)) for x in (logits, logits.T)]
    loss = aa.symmetric(aa.ntxent_loss)
    actual = loss(aa.cosine_similarity(POINTS, OTHERS), np.eye(6, dtype=bool))
    assert float(actual) == pytest.approx(np.mean(both), rel=1e-5)


def test_values_of_a_square_matrix_are_put_together_one_by_one():
    matrix, relevance, _ = oracles.pair_case(2, 5, 5, 0.0, 2.0)
    loss = functools.partial(aa.contrastive_loss, reduce_fn=None)
    expected = (loss(matrix, relevance) + loss(matrix.T, relevance.T)) / 2
    np.testing.assert_allclose(aa.symmetric(loss)(matrix, relevance), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"of shape \(4, 5\), which is not square"):
        aa.symmetric(aa.contrastive_loss)(matrix[:4], relevance[:4], reduce_fn=None)


def test_the_wrapped_loss_keeps_its_name_and_signature():
    for wrapper in (aa.symmetric, aa.checked):
        wrapped = wrapper(aa.ntxent_loss)
        assert wrapped.__name__ == "ntxent_loss"
        assert inspect.signature(wrapped) == inspect.signature(aa.ntxent_loss)


RIGHT = [
    (aa.triplet_loss, aa.cosine_distance(POINTS, POINTS), NOT_SELF),
    (aa.triplet_loss, aa.euclidean_distance(POINTS, POINTS), NOT_SELF),
    (aa.triplet_loss, aa.cosine_distance(POINTS, OTHERS), None),
    (aa.supcon_loss, aa.cosine_similarity(POINTS, POINTS), NOT_SELF),
    (aa.supcon_loss, aa.cosine_similarity(POINTS, OTHERS), None),
    # What is alike throughout is either; and one row is compared with nothing else.
    (aa.triplet_loss, jnp.zeros((6, 6)), None),
    (aa.triplet_loss, aa.cosine_distance(POINTS, POINTS).at[0, 1].set(jnp.nan), None),
    # Similarities to points that are no unit vectors may be larger than to oneself.
    (aa.supcon_loss, jnp.asarray(POINTS @ np.diag([9, 1, 1, 1]) @ POINTS.T), NOT_SELF),
]


@pytest.mark.parametrize(("loss", "matrix", "where"), RIGHT)
def test_a_right_matrix_gives_what_the_loss_gives(loss, matrix, where):
    np.testing.assert_array_equal(
        aa.checked(loss)(matrix, SAME, where=where), loss(matrix, SAME, where=where)
    )


WRONG = [
    (aa.triplet_loss, aa.cosine_similarity(POINTS, OTHERS), None, "distances must be at least 0"),
    (
        aa.triplet_loss,
        jnp.abs(aa.cosine_similarity(POINTS, POINTS)),
        NOT_SELF,
        r"distances are needed, but the diagonal of the symmetric matrix of shape \(6, 6\) is that "
        "of similarities of one set; compare by cosine_distance",
    ),
    (
        aa.supcon_loss,
        aa.cosine_distance(POINTS, POINTS),
        NOT_SELF,
        "similarities are needed, .* is that of distances of one set; compare by cosine_similarity",
    ),
    (
        aa.triplet_loss,
        aa.cosine_distance(POINTS, POINTS),
        None,
        r"one set of 6 rows is compared with itself.*pass where=~jnp\.eye\(6, dtype=bool\)",
    ),
    (aa.supcon_loss, aa.cosine_similarity(POINTS, POINTS), None, "one set of 6 rows is compared"),
    (
        functools.partial(aa.hard_triplet_loss, margin=0.2),
        aa.cosine_distance(POINTS, POINTS),
        None,
        "one set of 6 rows is compared",
    ),
]


@pytest.mark.parametrize(("loss", "matrix", "where", "said"), WRONG)
def test_a_wrong_matrix_is_refused_with_the_next_step(loss, matrix, where, said):
    with pytest.raises(ValueError, match=said):
        aa.checked(loss)(matrix, SAME, where=where)
    loss(matrix, SAME, where=where)  # by itself it says nothing
    jax.eval_shape(aa.checked(loss), matrix, SAME)  # nor while it is traced


def test_what_is_excluded_may_be_any():
    matrix = aa.cosine_distance(POINTS, OTHERS).at[1, 2].set(-3)
    where = np.ones((6, 6), bool)
    where[1, 2] = False
    aa.checked(aa.triplet_loss)(matrix, SAME, where=where)
    with pytest.raises(ValueError, match=r"got -3 at \[1, 2\] of shape \(6, 6\)"):
        aa.checked(aa.triplet_loss)(matrix, SAME)


def test_a_loss_that_does_not_say_what_it_takes_is_refused():
    with pytest.raises(ValueError, match="called distances or similarities; got scores"):
        aa.checked(lambda scores, relevance: 0.0)
    own = aa.checked(lambda similarities, relevance, where=None: jnp.sum(similarities))
    with pytest.raises(ValueError, match="similarities are needed"):
        own(aa.cosine_distance(POINTS, POINTS), SAME)


LABEL_ERRORS = [
    (
        lambda: aa.triplet_loss(np.ones((3, 3)), [0, 1, 2]),
        r"shape \(3,\).*become relevance by same",
    ),
    (
        lambda: aa.triplet_loss(np.ones((2, 2)), np.eye(3, dtype=int)[:2]),
        r"\(2, 3\).*by same_label",
    ),
    (
        lambda: aa.triplet_loss(np.ones((2, 2)), ["a", "b"]),
        r"got <U1 of shape \(2,\).*by same_label",
    ),
    (
        lambda: aa.supcon_loss(np.ones((2, 2)), np.zeros(2)),
        r"got float64 .*become relevance by same_",
    ),
    (
        lambda: aa.average_precision(np.ones((2, 2)), [0, 1]),
        r"\(2,\).*become relevance by same_label",
    ),
    (
        lambda: aa.same_label(np.array(["dog"]), np.array(["cat"])),
        r"got <U3.*np\.unique\(names, ret",
    ),
    (lambda: aa.same_label(["dog"], ["cat"]), r"got <U3 of shape \(1,\); number the classes first"),
    (
        lambda: aa.same_label(np.array(["dog"], object), ["cat"]),
        r"got object .*number the classes fi",
    ),
    (lambda: aa.same_label(np.array([b"dog"]), [b"cat"]), r"got \|S3 .*number the classes first"),
    (lambda: aa.same_label([0.0, 1.0], [0, 1]), r"got float64 .* convert them by labels\.astype"),
    (lambda: aa.anchor_aware_proxies(POINTS, list("aabbcc")), r"number the classes first"),
]


@pytest.mark.parametrize(("call", "said"), LABEL_ERRORS)
def test_labels_in_a_wrong_place_or_form_are_refused_with_the_next_step(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_next_step_leads_on():
    names = np.array(["dog", "cat", "dog"])
    labels = np.unique(names, return_inverse=True)[1]
    np.testing.assert_array_equal(aa.same_label(labels, labels), names[:, None] == names[None, :])
