"""The towers that project features into label space.

In label space the last layer has one unit per class, and its output P [B, C] is at once a class
prediction and the embedding used for retrieval. The paper (Zeng et al., ICMR 2024,
arXiv:2404.13789) does not publish its architecture; three hidden layers of 1,024 tanh units with
dropout 0.1 follow the sibling papers of the same group.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import configurations
from flax import linen as nn
from jax.extend.random import threefry2x32_p

from aadml_jax._arrays import Array, ArrayLike, check_count, check_scalar
from aadml_jax._random import fixed_generator

TOWERS = ("audio", "visual")
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": jnp.float32, "precision": jax.lax.Precision.HIGHEST},
    "float32_high": {"dtype": jnp.float32, "precision": jax.lax.Precision.HIGH},
    "bfloat16": {"dtype": jnp.bfloat16, "precision": jax.lax.Precision.HIGHEST},
}
"""How the towers multiply, as their `dtype` and `precision`.

The matrix units of accelerators multiply numbers of few bits. A product of float32 is made of six
such products on a TPU, or computed beside those units on a GPU; `float32_high` makes it of three,
of bfloat16 on a TPU and of TF32 on a GPU of NVIDIA. With x = h + r, h the rounded x, and y = g + s
alike,

    x y ≈ h g + h s + r g

leaves r s out. That and the rounding of r and s are at most 3 · 2⁻¹⁶ of x y for bfloat16 (8
significant bits) and 3 · 2⁻²² for TF32 (11). A CPU computes the same as for `float32`.
"""
_DROPOUT_LEVELS = 2**16


@contextlib.contextmanager
def fixed_draws() -> Iterator[None]:
    """A context in which modules draw the same bits whatever the options of JAX and Flax say."""
    # How Flax derives a module's key from its name.
    option = "flax_fix_rng_separator"
    former = getattr(configurations.config, option)
    configurations.config.update(option, False)
    try:
        with fixed_generator():
            yield
    finally:
        configurations.config.update(option, former)


def _multiply(
    inputs: Array, kernel: Array, dimension_numbers: Any, precision: Any, **options: Any
) -> Array:
    """`jax.lax.dot_general`, for `Precision.HIGH` by three products everywhere but on CPUs."""
    if precision != jax.lax.Precision.HIGH or inputs.dtype != jnp.float32:
        return jax.lax.dot_general(inputs, kernel, dimension_numbers, precision, **options)
    # A GPU takes HIGH, as it takes no precision at all, for a single product of TF32.
    by_platform = {
        "cuda": jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
        "default": jax.lax.Precision.HIGH,
    }
    return jax.lax.platform_dependent(
        inputs,
        kernel,
        **{
            platform: functools.partial(
                jax.lax.dot_general,
                dimension_numbers=dimension_numbers,
                precision=way,
                **options,
            )
            for platform, way in by_platform.items()
        },
    )


def draw_levels(key: Array, rows: ArrayLike, width: int) -> Array:
    """Random 16-bit numbers that depend on the key, the row's number and the column alone.

    A draw for the array at hand, as `flax.linen.Dropout` makes it, gives a batch that is split over
    devices other masks than the whole batch. Here the row's number in the global batch and the
    column are the counter of the threefry hash, so how the rows are laid out does not matter, and
    one hash gives four units their bits:

        row 7, columns 0 … 3 of 10: the hash of (7, 0) is two words, their low halves are the
        numbers of columns 0 and 6, their high halves those of 3 and 9; (7, 1) gives 1, 4, 7, …

    Args:
      key: of any generator. That of threefry gives the same numbers whatever the options of JAX
        say; another one is a seed of the hash.
      rows: int [B].
      width: columns.

    Returns:
      uint32 [B, width], from 0 to 2¹⁶ − 1.
    """
    words = _threefry_words(key)
    count = -(-width // 4)
    rows = jnp.asarray(rows)
    columns = jnp.arange(count, dtype=jnp.uint32)
    row_counters = jnp.broadcast_to(rows.astype(jnp.uint32)[:, None], (len(rows), count))
    column_counters = jnp.broadcast_to(columns[None, :], (len(rows), count))
    first, second = threefry2x32_p.bind(words[0], words[1], row_counters, column_counters)
    # Not as a cast to pairs of uint16: an axis of length 2 fills 128 lanes of a TPU.
    halves = [half for word in (first, second) for half in (word & 0xFFFF, word >> 16)]
    return jnp.concatenate(halves, axis=1)[:, :width]


def _threefry_words(key: Array) -> Array:
    """The two words of a threefry key, or as many drawn from another one."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return jax.random.key_data(key)
    return jax.random.bits(key, (2,), jnp.uint32)


def drop_units(inputs: Array, levels: Array, rate: float) -> Array:
    """Dropout of `inputs` [B, H] by the `levels` [B, H] of `draw_levels`.

    The rate is rounded to a multiple of 2⁻¹⁶, and the survivors are scaled by the rounded rate in
    at least float32, so that the expected output is the input. To be so in narrower types too,
    whose rounding of a product would move it by up to 0.2 %, the survivors' own random bits decide
    whether the product is rounded up or down.
    """
    threshold = _threshold(rate)
    scale = _DROPOUT_LEVELS / (_DROPOUT_LEVELS - threshold)
    if jnp.finfo(inputs.dtype).nmant < jnp.finfo(jnp.float32).nmant:
        exact = inputs.astype(jnp.float32) * jnp.float32(scale)
        # A survivor's level is any from the threshold on: stretched to all 16 bits, a dither.
        dither = (jnp.maximum(levels, threshold) - threshold).astype(jnp.float32) * scale
        scaled = _rounded_at_random(exact, dither.astype(jnp.uint32), inputs.dtype)
    else:
        scaled = inputs * jnp.asarray(scale, inputs.dtype)
    return jnp.where(levels >= threshold, scaled, 0)


def _threshold(rate: float) -> int:
    """The level below which a unit is dropped."""
    return min(round(rate * _DROPOUT_LEVELS), _DROPOUT_LEVELS - 1)


def _draw_levels(module: nn.Module, features: Array, rows: Array | None, width: int) -> Array:
    """Levels from a module's random stream, the rows by default numbered from 0."""
    if rows is None:
        rows = jnp.arange(features.shape[0], dtype=jnp.int32)
    with fixed_draws():
        return draw_levels(module.make_rng("dropout"), rows, width)


def _rounded_at_random(values: Array, dither: Array, dtype: Any) -> Array:
    """Float32 `values` in a narrower type, rounded to either neighbour so that the mean is kept.

    Of the 23 bits after the point, bfloat16 keeps 7. A value whose other 16 bits are a quarter of
    the whole, 0x4000, is rounded up by every dither from 0xC000 on, a quarter of them. The
    derivative is that of no rounding.

    Args:
      values: float32, in the range of `dtype`.
      dither: uint32 below 2¹⁶, uniformly distributed.
      dtype: with fewer bits after the point.
    """
    surplus = jnp.finfo(jnp.float32).nmant - jnp.finfo(dtype).nmant
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), jnp.uint32)
    bits = (bits + (dither >> (16 - surplus))) >> surplus << surplus
    rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
    # Exact: the difference of neighbours is.
    return (values + (rounded - jax.lax.stop_gradient(values))).astype(dtype)


def _check_rate(rate: float, name: str) -> None:
    check_scalar(rate, jnp.float32, name)
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be at least 0 and below 1; got {rate}")


def _check_sizes(num_classes: int, hidden_sizes: Sequence[int], dropout_rate: float) -> None:
    check_count(num_classes, "num_classes")
    for size in hidden_sizes:
        check_count(size, f"each of hidden_sizes={tuple(hidden_sizes)}")
    _check_rate(dropout_rate, "dropout_rate")


def _check_precision(precision: Any) -> None:
    if precision is not None and not isinstance(precision, jax.lax.Precision):
        raise ValueError(
            f"precision must be a jax.lax.Precision or None; got {precision!r}, of which a GPU "
            "would make another product"
        )


class LabelSpaceTower(nn.Module):
    """A multilayer perceptron from one modality's features to label space.

    Attributes:
      num_classes: C, the number of output units.
      hidden_sizes: units of each tanh layer.
      dropout_rate: after each hidden layer.
      dtype: of the layers' products; parameters are float32, the output is float32 at least.
      precision: of the matrix products. The default keeps float32 products in float32 where a TPU
        or GPU would round the factors.

    Raises:
      ValueError: for sizes below 1, a dropout rate outside [0, 1), or a precision of another type.
    """

    num_classes: int
    hidden_sizes: Sequence[int] = (1024, 1024, 1024)
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32
    precision: Any = jax.lax.Precision.HIGHEST

    def __post_init__(self) -> None:
        """Checks sizes and rate."""
        _check_sizes(self.num_classes, self.hidden_sizes, self.dropout_rate)
        _check_precision(self.precision)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        features: Array,
        *,
        train: bool = False,
        rows: Array | None = None,
        levels: Array | None = None,
    ) -> Array:
        """Projects `features` [B, D] to P [B, C].

        Args:
          features: [B, D].
          train: whether dropout is on; it then needs the random stream "dropout" or `levels`.
          rows: int32 [B], the samples' numbers in the global batch, default 0 … B − 1.
          levels: of all hidden units, layer by layer, see `draw_levels`; default drawn here.

        Returns:
          [B, C] without any activation.
        """
        if not train or _threshold(self.dropout_rate) == 0:
            levels = None
        elif levels is None:
            levels = _draw_levels(self, features, rows, sum(self.hidden_sizes))
        dense = functools.partial(
            nn.Dense, dtype=self.dtype, precision=self.precision, dot_general=_multiply
        )
        hidden, first = features, 0
        for layer, size in enumerate(self.hidden_sizes):
            hidden = dense(size, name=f"hidden_{layer}")(hidden)
            hidden = jnp.tanh(hidden)
            if levels is not None:
                of_layer = levels[:, first : first + size]
                hidden = drop_units(hidden, of_layer, self.dropout_rate)
                first += size
        outputs = dense(self.num_classes, name="label_space")(hidden)
        return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


class TwoTowers(nn.Module):
    """An audio and a visual `LabelSpaceTower` that share nothing.

    Attributes:
      num_classes: C.
      hidden_sizes: of either tower.
      dropout_rate: of either tower.
      dtype: of the layers' products.
      precision: of the same, see `PRECISIONS`.

    Raises:
      ValueError: for sizes below 1, a dropout rate outside [0, 1), or a precision of another type.
    """

    num_classes: int
    hidden_sizes: Sequence[int] = (1024, 1024, 1024)
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32
    precision: Any = jax.lax.Precision.HIGHEST

    def __post_init__(self) -> None:
        """Checks sizes and rate."""
        _check_sizes(self.num_classes, self.hidden_sizes, self.dropout_rate)
        _check_precision(self.precision)
        super().__post_init__()

    def setup(self) -> None:
        """Names the towers `audio` and `visual` in the parameter tree."""
        options = {
            "num_classes": self.num_classes,
            "hidden_sizes": tuple(self.hidden_sizes),
            "dropout_rate": self.dropout_rate,
            "dtype": self.dtype,
            "precision": self.precision,
        }
        self.audio = LabelSpaceTower(**options)
        self.visual = LabelSpaceTower(**options)

    def __call__(
        self, audio: Array, visual: Array, *, train: bool = False, rows: Array | None = None
    ) -> tuple[Array, Array]:
        """Projects `audio` [B, Da] and `visual` [B, Dv] to label space, each [B, C]."""
        of_audio = of_visual = None
        if train and _threshold(self.dropout_rate) > 0:
            # One draw for both towers: a GPU makes it in one launch.
            num_units = sum(self.hidden_sizes)
            levels = _draw_levels(self, audio, rows, 2 * num_units)
            of_audio, of_visual = levels[:, :num_units], levels[:, num_units:]
        return (
            self.audio(audio, train=train, levels=of_audio),
            self.visual(visual, train=train, levels=of_visual),
        )


def paired_outputs(
    model: TwoTowers,
    params: dict[str, Any],
    audio: Array,
    visual: Array,
    *,
    rows: Array,
    dropout_key: Array,
) -> Array:
    """What `model` computes in training, with the like layers of both towers as one operation each.

    Args:
      model: the towers.
      params: of `pair_params`: layers under "both" [2, …], audio first, all others by tower.
      audio: [B, Da].
      visual: [B, Dv].
      rows: int32 [B], the samples' numbers in the global batch.
      dropout_key: of the random stream "dropout".

    Returns:
      The outputs [2, B, C], audio first.
    """

    def dense(inputs: Array, layer: dict[str, Array]) -> Array:
        inputs, kernel, bias = (
            array.astype(model.dtype) for array in (inputs, layer["kernel"], layer["bias"])
        )
        towers = tuple(range(kernel.ndim - 2))  # along an axis of both, if there is one
        axes = ((inputs.ndim - 1,), (kernel.ndim - 2,)), (towers, towers)
        return _multiply(inputs, kernel, axes, model.precision) + jnp.expand_dims(bias, -2)

    def layer_of_both(name: str, inputs: Array | tuple[Array, Array]) -> Array:
        if name in params["both"]:
            of_both = inputs if isinstance(inputs, jax.Array) else jnp.stack(inputs)
            return dense(of_both, params["both"][name])
        of_towers = zip(inputs, TOWERS, strict=True)
        return jnp.stack([dense(x, params[tower][name]) for x, tower in of_towers])

    num_units, first, levels = sum(model.hidden_sizes), 0, None
    if _threshold(model.dropout_rate) > 0:
        # The streams of a module that is applied, see `TwoTowers`.
        streams = model.bind({}, rngs={"dropout": dropout_key})
        levels = _draw_levels(streams, audio, rows, 2 * num_units)
        levels = jnp.stack([levels[:, :num_units], levels[:, num_units:]])
    with jax.named_scope("towers"):
        hidden: Array | tuple[Array, Array] = (audio, visual)
        for layer, size in enumerate(model.hidden_sizes):
            hidden = jnp.tanh(layer_of_both(f"hidden_{layer}", hidden))
            if levels is not None:
                hidden = drop_units(hidden, levels[:, :, first : first + size], model.dropout_rate)
                first += size
        outputs = layer_of_both("label_space", hidden)
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
