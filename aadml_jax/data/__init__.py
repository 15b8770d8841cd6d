"""Audio-visual feature data on the host: checked NumPy arrays from files or from a generator."""

from aadml_jax.data.catalog import DATASETS, DatasetSpec, load_dataset
from aadml_jax.data.feature_files import load_feature_file
from aadml_jax.data.paired_features import (
    FeatureStandardization,
    PairedFeatures,
    RetrievalDataset,
    class_balanced_rows,
    fit_standardization,
    standardize,
)
from aadml_jax.data.synthetic import (
    SYNTHETIC,
    SYNTHETIC_VEGAS,
    SyntheticSpec,
    class_posteriors,
    make_synthetic,
)

__all__ = [
    "DATASETS",
    "SYNTHETIC",
    "SYNTHETIC_VEGAS",
    "DatasetSpec",
    "FeatureStandardization",
    "PairedFeatures",
    "RetrievalDataset",
    "SyntheticSpec",
    "class_balanced_rows",
    "class_posteriors",
    "fit_standardization",
    "load_dataset",
    "load_feature_file",
    "make_synthetic",
    "standardize",
]
