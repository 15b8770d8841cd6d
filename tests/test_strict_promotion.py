"""Every public function under strict dtype promotion, with labels and inputs of every type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_explicit_mesh import CASES


def converted(tree, floating, integer):
    """Floats and labels in other types; booleans and row numbers stay what they are."""

    def convert(leaf):
        array = jnp.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.floating):
            return array.astype(floating)
        return array.astype(integer) if jnp.issubdtype(array.dtype, jnp.integer) else array

    return jax.tree.map(convert, tree)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("way", "floating", "integer"),
    [
        ("plain", "bfloat16", "int8"),
        ("compiled", "float32", "int32"),
        ("plain", "float16", "uint8"),
    ],
)
def test_strict_promotion_changes_nothing(name, way, floating, integer):
    function, arrays = CASES[name]
    rows = "rows" in name or name.startswith("update_memory") or "integers" in name
    arrays = converted(arrays, floating, "int32" if rows else integer)

    def run():
        return function(*arrays) if way == "plain" else jax.jit(function)(*arrays)

    with jax.numpy_dtype_promotion("standard"):
        expected = run()
    with jax.numpy_dtype_promotion("strict"):
        actual = run()
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
