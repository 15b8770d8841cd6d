"""What a file is, by its first bytes: so that a file of another format is not called damaged.

One table for all readers. A reader that does not find its own signature asks here, and says what
the file is and what to do with it. Only the bytes that are handed in are looked at; nothing in them
is trusted beyond the name that it gives the file.
"""

import pathlib
import re
import struct
from typing import NamedTuple

from aadml_jax._files import read_at_most, reading
from aadml_jax.errors import UserError

START_BYTES = 1024
"""As many first bytes as `kind_of` needs."""

_BY_H5PY = "and write them into an HDF5 file with h5py"
_DECOMPRESS = "decompress it first, by {}"
_FETCH_AGAIN = "fetch it again"


class FileKind(NamedTuple):
    """A format that a file may have.

    Attributes:
      name: With its article, such as "a NumPy archive (.npz)".
      remedy: What to do with such a file whatever was wanted; empty if that depends on what was.
      to_hdf5: How to make an HDF5 feature file of it; empty where `remedy` says all.
      is_text: Whether it is text in UTF-8.
    """

    name: str
    remedy: str = ""
    to_hdf5: str = ""
    is_text: bool = False


EMPTY = FileKind("an empty file", "fetch or write it again")
ZEROS = FileKind("a file of zeros alone, as a download leaves that was cut off", _FETCH_AGAIN)
HDF5 = FileKind("an HDF5 file")
NPY = FileKind("a NumPy array (.npy)", to_hdf5=f"read it by numpy.load {_BY_H5PY}")
NPZ = FileKind("a NumPy archive (.npz)", to_hdf5=f"read its arrays by numpy.load {_BY_H5PY}")
GZIP = FileKind("a file compressed by gzip", _DECOMPRESS.format("gunzip"))
TEXT = FileKind(
    "a text file", to_hdf5=f"read its numbers by numpy.loadtxt {_BY_H5PY}", is_text=True
)
ARRAY_RECORD = FileKind(
    "an ArrayRecord shard (Riegeli)",
    to_hdf5="give the folder of data sets that holds it, by --dataset=tfds:NAME --data_dir=FOLDER",
)
ZIP = FileKind("a zip archive", "unpack it and give the file within")

_EXCEL = "an Excel workbook"
_PICKLE = FileKind(
    "a Python pickle",
    to_hdf5=f"load its arrays where it was made, since loading runs code, {_BY_H5PY}",
)
_TORCH = FileKind(
    "a PyTorch file", to_hdf5=f"load its tensors by torch.load(…, weights_only=True) {_BY_H5PY}"
)
_PAGE = FileKind("a web page", "fetch it again, a download link may have answered with this page")
_LFS = FileKind("a pointer of Git LFS and not the file itself", "run git lfs pull")
_CSV = FileKind(
    "a text file with separated values (CSV)",
    to_hdf5=f"read its numbers by numpy.loadtxt {_BY_H5PY}, or give a list of clips to python -m "
    "experiments.prepare --dataset=clips",
    is_text=True,
)

# In the order in which they are looked for: longer signatures of a family come first.
_SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", HDF5),
    (512, b"\x89HDF\r\n\x1a\n", HDF5),  # behind a block of the user's, as MATLAB writes it
    (
        0,
        b"MATLAB ",
        FileKind(
            "a MATLAB file of version 5 to 7",
            to_hdf5=f"read its arrays by scipy.io.loadmat {_BY_H5PY}",
        ),
    ),
    (0, b"\x93NUMPY", NPY),
    (
        0,
        b"PAR1",
        FileKind("a Parquet file", to_hdf5=f"read its columns by pandas.read_parquet {_BY_H5PY}"),
    ),
    (
        0,
        b"ARROW1",
        FileKind("an Arrow file", to_hdf5=f"read its columns by pandas.read_feather {_BY_H5PY}"),
    ),
    (
        0,
        b"FEA1",
        FileKind("a Feather file", to_hdf5=f"read its columns by pandas.read_feather {_BY_H5PY}"),
    ),
    (
        0,
        b"CDF",
        FileKind("a NetCDF 3 file", to_hdf5="convert it to NetCDF 4, which is HDF5, by nccopy -k4"),
    ),
    (
        0,
        b"\x0e\x03\x13\x01",
        FileKind("an HDF4 file", to_hdf5="convert it to HDF5 by h4toh5"),
    ),
    (0, bytes.fromhex("83af70d10d884a3f"), ARRAY_RECORD),
    (0, b"\x1f\x8b", GZIP),
    (0, b"BZh", FileKind("a file compressed by bzip2", _DECOMPRESS.format("bunzip2"))),
    (0, b"\xfd7zXZ\x00", FileKind("a file compressed by xz", _DECOMPRESS.format("unxz"))),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        FileKind("a file compressed by Zstandard", _DECOMPRESS.format("unzstd")),
    ),
    (0, b"\x04\x22\x4d\x18", FileKind("a file compressed by LZ4", _DECOMPRESS.format("unlz4"))),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("a 7-Zip archive", "unpack it and give the file within")),
    (0, b"Rar!\x1a\x07", FileKind("a RAR archive", "unpack it and give the file within")),
    (257, b"ustar", FileKind("a tar archive", "unpack it and give the file within")),
    (
        0,
        bytes.fromhex("d0cf11e0a1b11ae1"),
        FileKind(_EXCEL + " of the older kind (.xls)", "export it as CSV in UTF-8"),
    ),
    (0, b"SQLite format 3", FileKind("an SQLite database")),
    (0, b"%PDF-", FileKind("a PDF document")),
    (0, b"\x89PNG\r\n", FileKind("a PNG image")),
    (0, b"\xff\xd8\xff", FileKind("a JPEG image")),
    (0, b"fLaC", FileKind("a FLAC recording")),
    (0, b"OggS", FileKind("an Ogg recording")),
    (0, b"ID3", FileKind("an MP3 recording")),
    (0, b"FORM", FileKind("an AIFF recording")),
    (0, b"\x1aE\xdf\xa3", FileKind("a Matroska or WebM video")),
    (4, b"ftyp", FileKind("an MP4 video or recording")),
    (0, b"\xff\xfe", FileKind("a text file in UTF-16", "save it as UTF-8")),
    (0, b"\xfe\xff", FileKind("a text file in UTF-16", "save it as UTF-8")),
)


def kind_of(start: bytes) -> FileKind | None:
    """The format of a file.

    Args:
      start: Its first `START_BYTES` bytes, or all of them if there are fewer.

    Returns:
      The format, None where the bytes do not tell.
    """
    if not start:
        return EMPTY
    # A table may well begin with the word ID3 or FORM; what is text to its end is text.
    text = _text(start)
    if text is not None:
        return text
    for place, signature, kind in _SIGNATURES:
        if start.startswith(signature, place):
            return kind
    for recognise in (_zip, _riff, _pickle, _idx, _tfrecord, _matlab_4):
        kind = recognise(start)
        if kind is not None:
            return kind
    return None if any(start) else ZEROS


def first_bytes(path: pathlib.Path) -> bytes:
    """What `kind_of` needs of a file.

    Raises:
      UserError: They cannot be read.
    """
    with reading(path), open(path, "rb") as file:
        return bytes(read_at_most(file, START_BYTES))


def require_no_other_kind(what: str, start: bytes, wanted: str, *kinds: FileKind) -> None:
    """Refuses a file that is recognised as something else.

    Args:
      what: The file in the message.
      start: Its first bytes.
      wanted: What it should be, with its article, such as "a .npy file".
      *kinds: Formats that may be what is wanted after all; an empty file and one of zeros always
        may, for they have lost their signature: damage, which the reader reports.

    Raises:
      UserError: It is of another format; the message names it and the remedy.
    """
    kind = kind_of(start)
    if kind is not None and kind not in (EMPTY, ZEROS, *kinds):
        raise UserError(f"{what} is {kind.name}, not {wanted}; {kind.remedy or f'give {wanted}'}")


def _zip(start: bytes) -> FileKind | None:
    """By the name of the first member, which is where the archive begins."""
    if not start.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")):
        return None
    length = int.from_bytes(start[26:28], "little")
    name = start[30 : 30 + length]
    if name.endswith(b".npy"):
        return NPZ
    if name.startswith((b"[Content_Types].xml", b"xl/", b"_rels/")):
        return FileKind(f"{_EXCEL} or another Office document", "export it as CSV in UTF-8")
    if name.endswith(b"data.pkl"):
        return _TORCH
    return ZIP


def _riff(start: bytes) -> FileKind | None:
    if start[:4] not in (b"RIFF", b"RIFX", b"RF64"):
        return None
    form = start[8:12]
    return FileKind("a WAV recording" if form == b"WAVE" else "a RIFF file, such as AVI or WebP")


def _pickle(start: bytes) -> FileKind | None:
    """Protocols 2 to 5, whose first operations PyTorch's older files share."""
    if len(start) < 3 or start[0] != 0x80 or not 2 <= start[1] <= 5:
        return None
    # Behind the protocol stands an operation: a frame, a container, a number, a name or a text.
    if start[2:3] not in b"\x95}]()cXU\x8c\x8aKGMNIJ":
        return None
    return _TORCH if b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in start[:16] else _PICKLE


def _idx(start: bytes) -> FileKind | None:
    """Two zeros, a code of a type, and the number of dimensions."""
    if len(start) < 8 or start[:2] != b"\0\0":
        return None
    is_known = start[2] in (8, 9, 11, 12, 13, 14) and 1 <= start[3] <= 4
    return FileKind("an IDX file, as MNIST has them") if is_known else None


def _tfrecord(start: bytes) -> FileKind | None:
    """A length, and the sum that fits it."""
    if len(start) < 12:
        return None
    import google_crc32c

    crc = google_crc32c.value(start[:8])
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if struct.unpack("<I", start[8:12])[0] != masked:
        return None
    return FileKind(
        "a TFRecord file",
        to_hdf5="convert video-level features by python -m experiments.prepare "
        "--dataset=video_records",
    )


def _matlab_4(start: bytes) -> FileKind | None:
    """A header of five numbers and a name that ends with a zero."""
    if len(start) < 24:
        return None
    for order in "<>":
        kind, rows, columns, has_imaginary, length = struct.unpack(f"{order}5i", start[:20])
        name = start[20 : 20 + length] if 1 < length <= 64 else b""
        if (
            kind // 1000 in range(5)
            and kind % 1000 in (0, 1, 2, 10, 20, 30, 40, 50)
            and min(rows, columns) > 0
            and has_imaginary in (0, 1)
            and re.fullmatch(rb"[A-Za-z]\w*\0", name)
        ):
            return FileKind(
                "a MATLAB file of version 4",
                to_hdf5=f"read its arrays by scipy.io.loadmat {_BY_H5PY}",
            )
    return None


def _text(start: bytes) -> FileKind | None:
    """Text without control characters, and what kind of text."""
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The last character may have been cut.
        if error.start < len(start) - 3:
            return None
        text = start[: error.start].decode("utf-8-sig")
    if not text or not all(
        character.isprintable() or character in "\t\r\n\f" for character in text
    ):
        return None
    if text.startswith("version https://git-lfs"):
        return _LFS
    beginning = text.lstrip().lower()
    if beginning.startswith(("<!doctype html", "<html", "<head", "<body")):
        return _PAGE
    if beginning.startswith("<"):
        return FileKind(
            "an XML or HTML text", "fetch it again, a server may have answered with this text"
        )
    lines = text.splitlines()
    whole = lines[:-1] or lines
    for sign in ",;\t":
        if all(line.count(sign) == lines[0].count(sign) > 0 for line in whole):
            return _CSV
    return TEXT
