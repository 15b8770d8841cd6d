"""Audio-visual feature data on the host: checked NumPy arrays from files or from a generator."""

from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures
from aadml_jax.data.readers.catalog import (
    DATASETS,
    DatasetSpec,
    dataset_spec,
    open_dataset,
    reopen_dataset,
)
from aadml_jax.data.readers.feature_files import load_feature_file, open_feature_file
from aadml_jax.data.retrieval_dataset import PreparedFacts, RetrievalDataset, shared_rows
from aadml_jax.data.splits import (
    NUM_FOLDS,
    class_balanced_rows,
    representative_classes,
    stratified_folds,
    with_class_balanced_rows,
    with_fold,
    with_test_group,
    with_train_fraction,
)
from aadml_jax.data.standardization import (
    FeatureStandardization,
    fit_standardization,
    identity_standardization,
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
    "NUM_FOLDS",
    "SYNTHETIC",
    "SYNTHETIC_VEGAS",
    "DatasetSpec",
    "FeatureStandardization",
    "PairedFeatures",
    "PreparedFacts",
    "RetrievalDataset",
    "StoredFeatures",
    "SyntheticSpec",
    "class_balanced_rows",
    "class_posteriors",
    "dataset_spec",
    "fit_standardization",
    "identity_standardization",
    "load_feature_file",
    "make_synthetic",
    "open_dataset",
    "open_feature_file",
    "reopen_dataset",
    "representative_classes",
    "shared_rows",
    "standardize",
    "stratified_folds",
    "with_class_balanced_rows",
    "with_fold",
    "with_test_group",
    "with_train_fraction",
]
