"""Spoken digits paired with written ones: a small audio-visual data set of open licence.

Sound: Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0), recordings of six speakers; by its
official split, recordings 0 to 4 of each speaker and digit are for testing. Pictures: the test
images of MNIST (LeCun et al. 1998), each used once at most. Each recording gets an image of its
digit, drawn without replacement and always the same one.
"""

import itertools
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from aadml_jax._files import local_path, reading, require_readable_file
from aadml_jax.data.paired_features import PairedFeatures
from aadml_jax.data.readers.file_kinds import ZIP, first_bytes, require_no_other_kind
from aadml_jax.data.readers.idx import read_idx
from aadml_jax.data.readers.spoken_digits import log_mel_summary, read_recording
from aadml_jax.data.retrieval_dataset import RetrievalDataset
from aadml_jax.data.splits import keyed_order
from aadml_jax.errors import UserError, one_line

FILE_NAMES = (
    "free-spoken-digit-dataset-1.0.10.zip",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
NUM_RECORDINGS = 3000
NUM_DIGITS = 10
_LAST_TEST_RECORDING = 4
_PAIRING_SEED = 0
_FILE_NAME = re.compile(r"(\d)_([a-z]+)_(\d{1,3})\.wav")
# Of one file; those of the data set have 37 kB at most.
_LARGEST_FILE_BYTES = 2**20


class _Recording(NamedTuple):
    """Named so that sorting puts recordings in the order of the rows."""

    digit: int
    speaker: str
    number: int
    features: np.ndarray


def open_av_digits(
    recordings: str | os.PathLike[str],
    images: str | os.PathLike[str],
    image_labels: str | os.PathLike[str],
    *,
    num_recordings: int | None = None,
) -> RetrievalDataset:
    """Builds the data set from the files of its two sources.

    Args:
      recordings: A zip archive or a folder with WAV files named digit_speaker_number.wav, in any
        folders within it.
      images: IDX file of images, uint8 [M, H, W], plain or gzip.
      image_labels: IDX file of their digits, uint8 [M].
      num_recordings: That are expected; None takes what there is.

    Returns:
      Rows in the order of digit, speaker and number. Audio: 128 log-mel features (see
      `log_mel_summary`). Visual: the image's H·W values, in 0 … 1.

    Raises:
      UserError: A file can't be read or is damaged, recordings are missing, or there are fewer
        images of a digit than recordings.
    """
    what = local_path(recordings)
    spoken = sorted(_recordings(what), key=lambda recording: recording[:3])
    if not spoken or len(spoken) != (num_recordings or len(spoken)):
        wanted = "none named digit_speaker_number.wav"
        if num_recordings:
            wanted = f"{len(spoken)} instead of {num_recordings}"
        raise UserError(f"{what} holds other recordings than expected: {wanted}; fetch it again")
    for first, second in itertools.pairwise(spoken):
        if first[:3] == second[:3]:
            raise UserError(
                f"{what}: {second.digit}_{second.speaker}_{second.number}.wav stands twice; leave "
                "one of them out"
            )
    pictures = read_idx(images, num_dimensions=3)
    digits = read_idx(image_labels, num_dimensions=1)
    if len(pictures) != len(digits):
        raise UserError(
            f"{images} holds {len(pictures)} images but {image_labels} {len(digits)} labels; fetch "
            "both again"
        )
    if digits.max() >= NUM_DIGITS:
        number = int(np.argmax(digits >= NUM_DIGITS))
        raise UserError(
            f"{image_labels} holds the label {digits[number]} for image {number}; fetch it again"
        )
    labels = np.array([recording.digit for recording in spoken])
    chosen = _paired_images(labels, digits, images)
    audio = np.stack([recording.features for recording in spoken])
    visual = pictures[chosen].reshape(len(chosen), -1).astype(np.float32) / 255
    is_test = np.array([recording.number <= _LAST_TEST_RECORDING for recording in spoken])
    train, test = (
        PairedFeatures(audio[rows], visual[rows], labels[rows], name=f"{split} split of {what}")
        for split, rows in (("train", ~is_test), ("test", is_test))
    )
    files = tuple(str(local_path(path)) for path in (recordings, images, image_labels))
    return RetrievalDataset(
        name="av_digits",
        train=train,
        test=test,
        num_classes=NUM_DIGITS,
        source=", ".join(files),
        class_names=tuple(map(str, range(NUM_DIGITS))),
        source_files=tuple(path for path in files if not os.path.isdir(path)),
    )


def _paired_images(
    labels: np.ndarray, digits: np.ndarray, images: str | os.PathLike[str]
) -> np.ndarray:
    """An image of its digit for each recording, none twice."""
    chosen = np.empty(len(labels), np.int64)
    for digit in np.unique(labels):
        rows, candidates = np.flatnonzero(labels == digit), np.flatnonzero(digits == digit)
        if len(candidates) < len(rows):
            raise UserError(
                f"{images} holds {len(candidates)} images of the digit {digit}, but {len(rows)} "
                "recordings need one each; add images"
            )
        chosen[rows] = candidates[keyed_order(candidates, seed=_PAIRING_SEED)][: len(rows)]
    return chosen


def _recordings(path: pathlib.Path) -> Iterator[_Recording]:
    for name, content in _wav_files(path):
        match = _FILE_NAME.fullmatch(name.rpartition("/")[2])
        if match is None:
            raise UserError(f"{path}: {name} is not named digit_speaker_number.wav; fetch it again")
        samples = read_recording(content, what=f"{path}: {name}")
        yield _Recording(int(match[1]), match[2], int(match[3]), log_mel_summary(samples))


def _wav_files(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the WAV files of a folder or an archive."""
    if path.is_dir():
        for file in sorted(path.rglob("*.wav")):
            status = require_readable_file(file, "a WAV file")
            _require_small(path, file.name, status.st_size)
            with reading(file):
                content = file.read_bytes()
            yield str(file.relative_to(path)), content
        return
    require_readable_file(path, "the archive of the recordings")
    require_no_other_kind(str(path), first_bytes(path), "the zip archive of the recordings", ZIP)
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".wav"):
                    _require_small(path, entry.filename, entry.file_size)
                    yield entry.filename, archive.read(entry)
    except UserError:
        raise
    except Exception as error:  # zipfile raises errors of many kinds on damaged files
        raise UserError(f"{path} is damaged ({one_line(error)}); fetch it again") from error


def _require_small(path: pathlib.Path, name: str, size: int) -> None:
    if size > _LARGEST_FILE_BYTES:
        raise UserError(f"{path}: {name} has {size} bytes, too many for a digit; fetch it again")
