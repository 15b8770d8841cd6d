"""Builders for TensorFlow Datasets (TFDS); importing this module registers them.

```python
import tensorflow_datasets as tfds
import aadml_jax.data.tfds_builders

(train,) = tfds.data_source("av_digits", split=["train"])
```
"""

from aadml_jax.data.writers.tfds_builders import (
    AvDigits,
    Ave,
    FeatureBuilder,
    Vegas,
    fetch_av_digits,
    require_no_folder,
    write_tfds_folder,
)

__all__ = [
    "AvDigits",
    "Ave",
    "FeatureBuilder",
    "Vegas",
    "fetch_av_digits",
    "require_no_folder",
    "write_tfds_folder",
]
