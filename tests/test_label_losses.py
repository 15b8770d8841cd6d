"""The label losses against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aadml_jax as aa

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(5, 3))
TARGETS = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0]])


def squared(outputs, target):
    return sum((p - y) ** 2 for p, y in zip(outputs, target, strict=True))


def cross_entropy(outputs, target):
    total = sum(np.exp(p) for p in outputs)
    own = [np.log(np.exp(p) / total) for p, y in zip(outputs, target, strict=True) if y]
    return -sum(own) / len(own)


@pytest.mark.parametrize(
    ("loss", "row"),
    [(aa.squared_label_loss, squared), (aa.cross_entropy_label_loss, cross_entropy)],
)
def test_values_per_row_and_their_mean_equal_loops(loss, row):
    rows = [row(outputs, target) for outputs, target in zip(OUTPUTS, TARGETS, strict=True)]
    per_row = jax.jit(lambda *arrays: loss(*arrays, reduce_fn=None))(OUTPUTS, TARGETS)
    np.testing.assert_allclose(per_row, rows, rtol=1e-5)
    assert float(loss(OUTPUTS, TARGETS)) == pytest.approx(np.mean(rows), rel=1e-5)


def test_a_row_without_a_class_counts_as_nothing_in_cross_entropy():
    targets = np.array([[0, 0, 0], [0, 1, 0]])
    value, gradient = jax.value_and_grad(aa.cross_entropy_label_loss)(
        jnp.asarray(OUTPUTS[:2]), targets
    )
    assert float(value) == pytest.approx(cross_entropy(OUTPUTS[1], targets[1]) / 2, rel=1e-5)
    assert not np.any(gradient[0])


def test_shapes_that_do_not_fit_raise():
    for loss in (aa.squared_label_loss, aa.cross_entropy_label_loss):
        with pytest.raises(ValueError, match=r"\(5, 3\) and \(4, 3\)"):
            loss(OUTPUTS, TARGETS[:4])
