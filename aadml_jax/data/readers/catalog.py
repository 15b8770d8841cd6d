"""The data sets that can be asked for by name, and how to obtain those that are not generated."""

import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from aadml_jax._files import local_path
from aadml_jax.data.readers import av_digits
from aadml_jax.data.readers.feature_files import open_feature_file
from aadml_jax.data.retrieval_dataset import RetrievalDataset
from aadml_jax.data.synthetic import SYNTHETIC, SYNTHETIC_VEGAS, SyntheticSpec, make_synthetic
from aadml_jax.errors import UserError

TFDS_PREFIX = "tfds:"

_OBTAIN_GENERATED = "Nothing to fetch: the rows are drawn when asked for."
_OBTAIN_PUBLISHED = (
    "The authors keep the file on Google Drive: follow the link in the README of the GitHub "
    "repository ZenzenDatabase/CMR and download it by hand into a folder of your choice."
)


_VEGAS_CITATION = """\
@inproceedings{zhou2018visual,
  title={Visual to Sound: Generating Natural Sound for Videos in the Wild},
  author={Zhou, Yipin and Wang, Zhaowen and Fang, Chen and Bui, Trung and Berg, Tamara L.},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2018}
}"""
_AVE_CITATION = """\
@inproceedings{tian2018audio,
  title={Audio-Visual Event Localization in Unconstrained Videos},
  author={Tian, Yapeng and Shi, Jing and Li, Bochen and Duan, Zhiyao and Xu, Chenliang},
  booktitle={European Conference on Computer Vision (ECCV)},
  year={2018}
}"""
_AV_DIGITS_CITATION = """\
@misc{jackson2018fsdd,
  title={Free Spoken Digit Dataset},
  author={Jackson, Zohar and Souza, C{\\'e}sar and Flaks, Jason and Pan, Yuxin and Nicolas, Hereman
    and Thite, Adhish},
  doi={10.5281/zenodo.1342401},
  year={2018}
}
@article{lecun1998gradient,
  title={Gradient-Based Learning Applied to Document Recognition},
  author={LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal={Proceedings of the IEEE},
  volume={86},
  number={11},
  pages={2278--2324},
  year={1998}
}"""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What is known about a data set before it is loaded.

    Attributes:
      description: One sentence for listings.
      num_classes: C, or None where the file decides.
      file_names: File names to look for in the data folder; the first that exists is read. Empty
        for a data set that isn't looked up in a folder.
      default_epochs: Passes over the training rows unless the user says otherwise.
      obtain: How to get the data, in full sentences.
      dims: Numbers of audio and visual features, as published; they tell which axis of a series is
        that of the features.
      class_names: Names in label order, empty where unknown.
      homepage: Web page of the data set.
      citation: BibTeX.
      license: Of the data, where it is known.
      is_built: Whether the data set has to be prepared before it can be trained on.
      synthetic: The generator's settings, None for data from files.
    """

    description: str
    num_classes: int | None
    file_names: tuple[str, ...]
    default_epochs: int
    obtain: str
    dims: tuple[int, int] = (128, 1024)
    class_names: tuple[str, ...] = ()
    homepage: str = ""
    citation: str = ""
    license: str = ""
    is_built: bool = False
    synthetic: SyntheticSpec | None = None

    def fetch_by_hand(self) -> str:
        """What to put where, for data sets whose files can be fetched by hand."""
        files = " or ".join(self.file_names)
        if self.is_built:
            files = ", ".join(self.file_names)
        return f"{self.obtain} Put {files} into a folder and set --data_dir=FOLDER (or manual_dir)"


DATASETS: Mapping[str, DatasetSpec] = MappingProxyType(
    {
        "synthetic": DatasetSpec(
            description=f"Generated pairs, {SYNTHETIC.train_size} for training, with a known "
            "best ranking.",
            num_classes=SYNTHETIC.num_classes,
            file_names=(),
            default_epochs=60,
            obtain=_OBTAIN_GENERATED,
            synthetic=SYNTHETIC,
        ),
        "synthetic_vegas": DatasetSpec(
            description="Generated pairs in the numbers of VEGAS, with a known best ranking.",
            num_classes=SYNTHETIC_VEGAS.num_classes,
            file_names=(),
            default_epochs=60,
            obtain=_OBTAIN_GENERATED,
            synthetic=SYNTHETIC_VEGAS,
        ),
        "vegas": DatasetSpec(
            description="VEGAS: 28,103 clips of 10 classes, published features.",
            num_classes=10,
            file_names=("vegas_feature.h5", "vegas_feature_norm.h5"),
            default_epochs=400,
            obtain=_OBTAIN_PUBLISHED,
            homepage="https://github.com/ZenzenDatabase/CMR",
            citation=_VEGAS_CITATION,
        ),
        "ave": DatasetSpec(
            description="AVE: 1,955 clips of 15 classes, published features.",
            num_classes=15,
            file_names=("ave_feature_norm.h5", "AVE_feature_updated_squence.h5"),
            default_epochs=400,
            obtain=_OBTAIN_PUBLISHED,
            class_names=(
                "Clock",
                "Motorcycle",
                "Train horn",
                "Bark",
                "Cat",
                "Bus",
                "Rodents/rats",
                "Toilet flush",
                "Acoustic guitar",
                "Frying (food)",
                "Chainsaw",
                "Horse",
                "Helicopter",
                "Infant cry",
                "Truck",
            ),
            homepage="https://github.com/ZenzenDatabase/CMR",
            citation=_AVE_CITATION,
        ),
        "av_digits": DatasetSpec(
            description="Spoken digits (Free Spoken Digit Dataset) paired with written ones "
            "(MNIST): 2,700 pairs for training, 300 for testing.",
            num_classes=10,
            file_names=av_digits.FILE_NAMES,
            default_epochs=60,
            obtain="The files are the archive of tag v1.0.10 of "
            "https://github.com/Jakobovski/free-spoken-digit-dataset, and the test images of MNIST "
            "and their labels, from https://storage.googleapis.com/cvdf-datasets/mnist/.",
            dims=(128, 784),
            class_names=tuple(map(str, range(10))),
            homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
            citation=_AV_DIGITS_CITATION,
            license="Recordings: CC BY-SA 4.0. Images: CC BY-SA 3.0, as Keras's documentation says",
            is_built=True,
        ),
        "features": DatasetSpec(
            description="Any HDF5 feature file in one of the two published layouts.",
            num_classes=None,
            file_names=(),
            default_epochs=400,
            obtain="Extract audio and visual features of your own clips into one HDF5 file.",
        ),
    }
)
"""All data sets by name."""


def dataset_spec(name: str) -> DatasetSpec:
    """What is known about a data set by its name.

    Args:
      name: A key of `DATASETS`, or "tfds:NAME" for one that was prepared as a folder of TFDS.

    Raises:
      UserError: The name is unknown.
    """
    prepared = name.removeprefix(TFDS_PREFIX)
    if prepared != name:
        require_prepared_name(prepared, f"give --dataset={TFDS_PREFIX}NAME")
        known = DATASETS.get(prepared)
        return DatasetSpec(
            description=f"{prepared}, prepared as a folder of TFDS.",
            num_classes=known and known.num_classes,
            file_names=(),
            default_epochs=(known or DATASETS["features"]).default_epochs,
            obtain="Write it with python -m experiments.prepare.",
        )
    if name not in DATASETS:
        raise unknown_name(name, tuple(DATASETS))
    return DATASETS[name]


def unknown_name(name: str, choices: Sequence[str]) -> UserError:
    """What to say of a name that is none of the choices."""
    close = difflib.get_close_matches(name.lower(), choices, n=1)
    hint = f", did you mean {close[0]}?" if close else ";"
    return UserError(
        f"unknown data set {name!r}{hint} choose one of {', '.join(choices)}, or "
        f"{TFDS_PREFIX}NAME for one that was prepared"
    )


def require_prepared_name(name: str, remedy: str) -> None:
    """Checks that a name can be that of a folder of TFDS.

    Raises:
      UserError: It can't; `remedy` ends the message.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"the name {name!r} does not suit a data set of TFDS: lower-case letters, digits and "
            f"underscores do; {remedy}"
        )


def open_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    features_file: str | os.PathLike[str] | None = None,
    multi_label: bool = False,
) -> RetrievalDataset:
    """Opens a data set by name: features from files are read when rows are taken.

    Args:
      name: A key of `DATASETS`, or "tfds:NAME".
      data_dir: Folder with the published files, for "vegas" and "ave", or with the folders of TFDS
        for "tfds:NAME"; `~` is expanded.
      features_file: Feature file, for "features" only; `~` is expanded.
      multi_label: Whether its clips may have several classes, for "features" only.

    Returns:
      The data set; its `source` tells which file or folder it is in.

    Raises:
      UserError: The name is unknown, a path is missing or not used by this data set, or the file
        is not as it should be (see `open_feature_file`, `open_tfds_folder`).
    """
    spec = dataset_spec(name)
    is_prepared = name.startswith(TFDS_PREFIX)
    if spec.is_built:
        raise UserError(
            f"data set {name} has to be written first: python -m experiments.prepare "
            f"--dataset={name} --output=FOLDER; then set --dataset={TFDS_PREFIX}{name} "
            "--data_dir=FOLDER"
        )
    reads_folder, reads_file = bool(spec.file_names) or is_prepared, name == "features"
    for flag, value, is_used in (
        ("data_dir", data_dir, reads_folder),
        ("features_file", features_file, reads_file),
    ):
        if value is not None and not is_used:
            raise UserError(f"data set {name} does not use --{flag}={value}; leave the flag out")
    if multi_label and not reads_file:
        reason = ": what was prepared tells by itself" if is_prepared else ""
        raise UserError(f"data set {name} does not use --multi_label{reason}; leave the flag out")
    if spec.synthetic is not None:
        return make_synthetic(spec.synthetic, name=name)
    if reads_file:
        if features_file is None:
            raise UserError(f"data set {name} needs a file; set --features_file=FILE.h5")
        return open_feature_file(features_file, multi_label=multi_label)
    if is_prepared:
        if data_dir is None:
            raise UserError(
                f"data set {name} needs the folder that holds it; set --data_dir=FOLDER"
            )
        from aadml_jax.data.readers import tfds_folders  # TFDS is slow to import

        prepared = name.removeprefix(TFDS_PREFIX)
        folder = tfds_folders.newest_version(data_dir, prepared, origin=_origin(prepared))
        return tfds_folders.open_tfds_folder(folder, name=name)
    return _open_published_file(_find_published_file(name, spec, data_dir), name, spec)


def _origin(name: str) -> str:
    """A data set and the flags that it needs, as `experiments.prepare --dataset=` takes them."""
    if name not in DATASETS:
        return f"features --features_file=FILE.h5 --name={name}"
    needs_folder = DATASETS[name].file_names and not DATASETS[name].is_built
    return f"{name} --data_dir=FOLDER" if needs_folder else name


def reopen_dataset(
    name: str,
    source: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    multi_label: bool = False,
) -> RetrievalDataset:
    """Opens a data set again where it was found before.

    Args:
      name: What `open_dataset` was given.
      source: The `source` of the data set that it returned.
      data_dir: Folder where it is now, if it was moved; for data sets that are found in a folder.
      multi_label: What `open_dataset` was given.

    Raises:
      UserError: See `open_dataset`.
    """
    spec = dataset_spec(name)
    if spec.synthetic is not None or data_dir is not None:
        return open_dataset(
            name,
            data_dir=data_dir,
            features_file=source if name == "features" else None,
            multi_label=multi_label,
        )
    if name.startswith(TFDS_PREFIX):
        from aadml_jax.data.readers import tfds_folders

        return tfds_folders.open_tfds_folder(source, name=name)
    if name == "features":
        return open_feature_file(source, multi_label=multi_label)
    return _open_published_file(source, name, spec)


def _open_published_file(
    path: str | os.PathLike[str], name: str, spec: DatasetSpec
) -> RetrievalDataset:
    """Opens the feature file of a data set of the catalogue."""
    dataset = open_feature_file(path, num_classes=spec.num_classes, name=name, dims=spec.dims)
    return dataclasses.replace(dataset, class_names=spec.class_names)


def _find_published_file(
    name: str, spec: DatasetSpec, data_dir: str | os.PathLike[str] | None
) -> pathlib.Path:
    """First of a data set's files that exists in the folder."""
    remedy = f"needs {' or '.join(spec.file_names)}. {spec.obtain} Then set --data_dir=FOLDER"
    if data_dir is None:
        raise UserError(f"data set {name} {remedy}")
    folder = local_path(data_dir)
    if not os.path.isdir(folder):
        reason = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise UserError(f"--data_dir {folder} {reason}; data set {name} {remedy}")
    for file_name in spec.file_names:
        # A folder or a dangling link of that name is reported when it is opened.
        if os.path.lexists(folder / file_name):
            return folder / file_name
    there = ", ".join(sorted(path.name for path in folder.glob("*.h5"))) or "none"
    raise UserError(f"{folder} (.h5 files there: {there}): data set {name} {remedy}")
