"""The towers that project features into label space.

In label space the last layer has one unit per class, and its output P [B, C] is at once a class
prediction and the embedding used for retrieval. The paper (Zeng et al., ICMR 2024,
arXiv:2404.13789) does not publish its architecture; three hidden layers of 1,024 tanh units with
dropout 0.1 follow the sibling papers of the same group.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import configurations
from flax import linen as nn

from aadml_jax._arrays import Array, check_count, check_scalar
from aadml_jax._random import fixed_generator

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


class RowDropout(nn.Module):
    """Dropout whose mask depends on the key and the sample's row number alone.

    `flax.linen.Dropout` draws one mask for the array at hand, so that a batch split over devices
    gets other masks than the whole batch. Here each row draws from its own key, folded from the
    row's number in the global batch; how the rows are laid out does not matter.

    Each unit takes 16 random bits, which halves the cost of the generator. The rate is thereby
    rounded to a multiple of 2⁻¹⁶, and the survivors are scaled by the rounded rate in at least
    float32, so that the expected output is the input. To be so in narrower types too, whose
    rounding of a product would move it by up to 0.2 %, the survivors' own random bits decide
    whether the product is rounded up or down.

    The masks of a threefry key are the same under every setting of `jax_threefry_partitionable`; a
    key of another implementation gives other masks.

    Attributes:
      rate: probability of dropping a unit, in [0, 1).

    Raises:
      ValueError: for a rate outside that range.
    """

    rate: float

    def __post_init__(self) -> None:
        """Checks the rate."""
        _check_rate(self.rate, "rate")
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, rows: Array, *, train: bool) -> Array:
        """Drops units of `inputs` [B, H] for the global `rows` int32 [B]; identity if not train."""
        threshold = min(round(self.rate * _DROPOUT_LEVELS), _DROPOUT_LEVELS - 1)
        if not train or threshold == 0:
            return inputs
        width = inputs.shape[1]
        count = (width + 1) // 2
        with fixed_draws():
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.make_rng("dropout"), rows)
            words = jax.vmap(lambda key: jax.random.bits(key, (count,), jnp.uint32))(keys)
        levels = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(len(rows), -1)[:, :width]
        scale = _DROPOUT_LEVELS / (_DROPOUT_LEVELS - threshold)
        if jnp.finfo(inputs.dtype).nmant < jnp.finfo(jnp.float32).nmant:
            exact = inputs.astype(jnp.float32) * jnp.float32(scale)
            # A survivor's level is any from the threshold on: stretched to all 16 bits, a dither.
            dither = ((levels - threshold).astype(jnp.float32) * scale).astype(jnp.uint32)
            scaled = _rounded_at_random(exact, dither, inputs.dtype)
        else:
            scaled = inputs * jnp.asarray(scale, inputs.dtype)
        return jnp.where(levels >= threshold, scaled, 0)


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
      ValueError: for sizes below 1, or a dropout rate outside [0, 1).
    """

    num_classes: int
    hidden_sizes: Sequence[int] = (1024, 1024, 1024)
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32
    precision: Any = jax.lax.Precision.HIGHEST

    def __post_init__(self) -> None:
        """Checks sizes and rate."""
        _check_sizes(self.num_classes, self.hidden_sizes, self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Array, *, train: bool = False, rows: Array | None = None) -> Array:
        """Projects `features` [B, D] to P [B, C].

        Args:
          features: [B, D].
          train: whether dropout is on; it then needs the random stream "dropout".
          rows: int32 [B], the samples' numbers in the global batch, default 0 … B − 1.

        Returns:
          [B, C] without any activation.
        """
        if rows is None:
            rows = jnp.arange(features.shape[0], dtype=jnp.int32)
        hidden = features
        for layer, size in enumerate(self.hidden_sizes):
            hidden = nn.Dense(
                size, dtype=self.dtype, precision=self.precision, name=f"hidden_{layer}"
            )(hidden)
            hidden = RowDropout(self.dropout_rate, name=f"dropout_{layer}")(
                jnp.tanh(hidden), rows, train=train
            )
        outputs = nn.Dense(
            self.num_classes, dtype=self.dtype, precision=self.precision, name="label_space"
        )(hidden)
        return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


class TwoTowers(nn.Module):
    """An audio and a visual `LabelSpaceTower` that share nothing.

    Attributes:
      num_classes: C.
      hidden_sizes: of either tower.
      dropout_rate: of either tower.
      dtype: of the layers' products.

    Raises:
      ValueError: for sizes below 1, or a dropout rate outside [0, 1).
    """

    num_classes: int
    hidden_sizes: Sequence[int] = (1024, 1024, 1024)
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks sizes and rate."""
        _check_sizes(self.num_classes, self.hidden_sizes, self.dropout_rate)
        super().__post_init__()

    def setup(self) -> None:
        """Names the towers `audio` and `visual` in the parameter tree."""
        options = {
            "num_classes": self.num_classes,
            "hidden_sizes": tuple(self.hidden_sizes),
            "dropout_rate": self.dropout_rate,
            "dtype": self.dtype,
        }
        self.audio = LabelSpaceTower(**options)
        self.visual = LabelSpaceTower(**options)

    def __call__(
        self, audio: Array, visual: Array, *, train: bool = False, rows: Array | None = None
    ) -> tuple[Array, Array]:
        """Projects `audio` [B, Da] and `visual` [B, Dv] to label space, each [B, C]."""
        return (
            self.audio(audio, train=train, rows=rows),
            self.visual(visual, train=train, rows=rows),
        )
