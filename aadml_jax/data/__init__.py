"""Audio-visual feature data on the host: checked NumPy arrays from files or from a generator.

What other rooms may import is listed here. The modules that need TFDS, which is slow to import, are
not: `readers.tfds_folders`, `readers.video_records`, the writers of data sets and `tfds_builders`
are imported where they are used.
"""

from aadml_jax.data.clip_arrays import (
    MODALITIES,
    ClipArrays,
    ModalityRows,
    appended,
    fits_class_names,
)
from aadml_jax.data.paired_features import PairedFeatures, StoredFeatures, as_finite_float32
from aadml_jax.data.readers.catalog import (
    DATASETS,
    TFDS_PREFIX,
    DatasetSpec,
    dataset_spec,
    open_dataset,
    reopen_dataset,
    unknown_name,
)
from aadml_jax.data.readers.clip_arrays import (
    Provenance,
    read_clip_features,
    read_embeddings,
    read_provenance,
)
from aadml_jax.data.readers.clip_files import open_clip_files
from aadml_jax.data.readers.feature_files import load_feature_file, open_feature_file
from aadml_jax.data.readers.hdf5 import open_hdf5
from aadml_jax.data.readers.media_lists import read_media_list
from aadml_jax.data.retrieval_dataset import PreparedFacts, RetrievalDataset, shared_rows
from aadml_jax.data.splits import (
    NUM_FOLDS,
    class_balanced_rows,
    keyed_order,
    representative_classes,
    rows_with_class_counts_of,
    stratified_folds,
    with_class_balanced_rows,
    with_fold,
    with_test_group,
    with_train_fraction,
)
from aadml_jax.data.standardization import (
    LARGEST_DEVIATION,
    FeatureStandardization,
    MeasuredStandardization,
    Sums,
    fit_standardization,
    identity_standardization,
    measure_standardization,
    standardize,
)
from aadml_jax.data.synthetic import (
    SYNTHETIC,
    SYNTHETIC_VEGAS,
    SyntheticSpec,
    class_posteriors,
    make_synthetic,
)
from aadml_jax.data.writers.embeddings import write_embeddings

__all__ = [
    "DATASETS",
    "LARGEST_DEVIATION",
    "MODALITIES",
    "NUM_FOLDS",
    "SYNTHETIC",
    "SYNTHETIC_VEGAS",
    "TFDS_PREFIX",
    "ClipArrays",
    "DatasetSpec",
    "FeatureStandardization",
    "MeasuredStandardization",
    "ModalityRows",
    "PairedFeatures",
    "PreparedFacts",
    "Provenance",
    "RetrievalDataset",
    "StoredFeatures",
    "Sums",
    "SyntheticSpec",
    "appended",
    "as_finite_float32",
    "class_balanced_rows",
    "class_posteriors",
    "dataset_spec",
    "fit_standardization",
    "fits_class_names",
    "identity_standardization",
    "keyed_order",
    "load_feature_file",
    "make_synthetic",
    "measure_standardization",
    "open_clip_files",
    "open_dataset",
    "open_feature_file",
    "open_hdf5",
    "read_clip_features",
    "read_embeddings",
    "read_media_list",
    "read_provenance",
    "reopen_dataset",
    "representative_classes",
    "rows_with_class_counts_of",
    "shared_rows",
    "standardize",
    "stratified_folds",
    "unknown_name",
    "with_class_balanced_rows",
    "with_fold",
    "with_test_group",
    "with_train_fraction",
    "write_embeddings",
]
