"""Every public function under strict dtype promotion, with labels and inputs of every type."""

import re

import jax
import jax.numpy as jnp
import pytest
from test_explicit_mesh import CASES, full_but

TYPES = [("bfloat16", "int8"), ("float32", "int32"), ("float16", "uint8")]
# Plain calls rank on the host, in NumPy; those of other functions run what is traced.
ON_HOST = {
    name
    for name in CASES
    if any(part in name for part in ("precision", "recall", "rank", "ndcg", "report"))
}


def arrays_of(name, floating, integer):
    """Floats and labels in other types; booleans and row numbers stay what they are."""
    if "rows" in name or name.startswith("update_memory") or "integers" in name:
        integer = "int32"

    def convert(leaf):
        array = jnp.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.floating):
            return array.astype(floating)
        return array.astype(integer) if jnp.issubdtype(array.dtype, jnp.integer) else array

    return jax.tree.map(convert, CASES[name][1])


def program(function, arrays, promotion):
    """What JAX traces, without the addresses of the functions in it."""
    with jax.numpy_dtype_promotion(promotion):
        return re.sub(r" at 0x\w+", "", str(jax.make_jaxpr(function)(*arrays)))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("floating", "integer"), TYPES)
def test_strict_promotion_traces_the_same_program(name, floating, integer):
    function, arrays = CASES[name][0], arrays_of(name, floating, integer)
    assert program(function, arrays, "strict") == program(function, arrays, "standard")


@pytest.mark.parametrize("name", CASES)
def test_checks_of_known_values_need_no_implicit_promotion(name):
    function, (first, *others) = CASES[name][0], arrays_of(name, *TYPES[0])
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(lambda first: function(first, *others), first)


@pytest.mark.parametrize("name", full_but(ON_HOST))
@pytest.mark.parametrize(
    ("floating", "integer"), [TYPES[0], pytest.param(*TYPES[2], marks=pytest.mark.full)]
)
def test_plain_calls_need_no_implicit_promotion(name, floating, integer):
    function, arrays = CASES[name][0], arrays_of(name, floating, integer)
    with jax.numpy_dtype_promotion("strict"):
        actual = function(*arrays)
    expected = jax.eval_shape(function, *arrays)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
