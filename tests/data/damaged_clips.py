"""Damaged lists of clips and damaged .npy and .npz files: how each is made and what is said."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
from damaged_features import Damaged
from written_by_hand import (
    AUDIO_DIM,
    IDS,
    clip_list,
    clip_npz,
    features,
    npy,
    npy_of,
    npz,
)


def clip_set(folder, text=None, clips=None, flags=()):
    """Lists six clips, each a .npz but those that `clips` gives otherwise; None leaves one out."""
    for number, clip_id in enumerate(IDS):
        content = (clips or {}).get(clip_id, clip_npz(number))
        if content is not None:
            (folder / f"{clip_id}.npz").write_bytes(content)
    text = clip_list() if text is None else text
    (folder / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return Damaged(
        ("--dataset=clips", f"--clip_list={folder / 'list.csv'}", *flags), folder / "list.csv"
    )


def listed(change, *flags):
    """A list whose text a function changes."""
    return lambda folder: clip_set(folder, change(clip_list()), flags=flags)


def labelled(labels, *flags):
    return listed(lambda text: relabelled(labels), *flags)


def relabelled(labels):
    splits = ["train"] * 4 + ["test"] * 2
    return clip_list(zip(IDS, labels, splits, strict=True))


def at_list(make):
    """Something else in place of the list."""

    def build(folder):
        damaged = clip_set(folder)
        damaged.path.unlink()
        make(damaged.path)
        return damaged

    return build


def clip_d(content):
    """Another content of d.npz, the last clip for training."""
    return lambda folder: clip_set(folder, clips={"d": content})._replace(path=folder / "d.npz")


def members(change, compression=zipfile.ZIP_STORED):
    """A d.npz of other arrays; None leaves one out."""
    audio, visual = features(3)
    arrays = {"audio": audio, "visual": visual} | change
    kept = {key: value for key, value in arrays.items() if value is not None}
    return clip_d(npz(kept, compression))


def at_clip(make):
    def build(folder):
        damaged = clip_set(folder, clips={"d": None})._replace(path=folder / "d.npz")
        make(damaged.path)
        return damaged

    return build


def npy_a(content):
    """Another content of audio/a.npy, of the first clip, beside visual/a.npy."""

    def build(folder):
        damaged = clip_set(folder, clips={"a": None})
        for modality, array in zip(("audio", "visual"), features(0), strict=True):
            (folder / modality).mkdir()
            (folder / modality / "a.npy").write_bytes(npy(array))
        path = folder / "audio" / "a.npy"
        path.unlink()
        content(path) if callable(content) else path.write_bytes(content)
        return damaged._replace(path=path)

    return build


def zipped_as(name):
    """A zip archive of one member."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "x")
    return content.getvalue()


def encrypted(content):
    """A zip archive whose members are marked as encrypted."""
    content = bytearray(content)
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + place] |= 1
            start = content.find(signature, start + 4)
    return bytes(content)


def method(content, number):
    """A zip archive whose members are said to be compressed by a method."""
    content = bytearray(content)
    for signature, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        start = content.find(signature)
        while start >= 0:
            content[start + place] = number
            start = content.find(signature, start + 4)
    return bytes(content)


def header(shape=f"({AUDIO_DIM},)", descr="'<f4'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def with_sizes(content, size):
    """A zip archive that announces another size of each member."""
    content = bytearray(content)
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = content.find(signature)
        while start >= 0:
            content[start + place : start + place + 4] = struct.pack("<I", size)
            start = content.find(signature, start + 4)
    return bytes(content)


def bomb(size):
    """A d.npz that is small until it is decompressed."""
    return lambda folder: members({"audio": np.zeros(size)}, zipfile.ZIP_DEFLATED)(folder)


def flipped(content, place):
    content = bytearray(content)
    content[place] ^= 0xFF
    return bytes(content)


def loop(path):
    path.symlink_to(path.name)


def part(start, stop=None):
    """Cuts a text."""
    return lambda text: text[start:stop]


SOUND_NPZ, SOUND_NPY = clip_npz(3), npy(features(3)[0])
LARGE = header(f"({2**25},)", "'<f8'")
CENTRAL, END = SOUND_NPZ.find(b"PK\1\2"), SOUND_NPZ.find(b"PK\5\6")

LISTS = {
    "list is empty": (
        listed(part(0, 0)),
        ["the header needs the column clip_id once and does not name it"],
    ),
    "list without header": (listed(part(20)), ["needs the column clip_id"]),
    "list of a header": (listed(part(0, 20)), ["lists no clips"]),
    "list cut in a header": (listed(part(0, 12)), ["needs the column label"]),
    "list cut in a line": (listed(lambda text: text[:-2]), ["line 7", "'tes'"]),
    "list cut before a cell": (listed(lambda text: text[:-6]), ["line 7 has 2 cells"]),
    "list cut in quotes": (listed(lambda text: text + '"g'), ["line 8", "unexpected end"]),
    "list text after quotes": (listed(lambda text: text + '"g"h,1,test'), ["line 8"]),
    "list cells missing": (listed(lambda text: text + "g,1\n"), ["line 8 has 2 cells"]),
    "list cells too many": (listed(lambda text: text + "g,1,test,2\n"), ["line 8 has 4 cells"]),
    "list column missing": (listed(lambda text: text.replace("split", "part")), ["column split"]),
    "list column twice": (listed(lambda text: text.replace("split", "label")), ["column label"]),
    "list latin-1": (listed(lambda text: (text + "é,1,test").encode("latin-1")), ["not UTF-8"]),
    "list utf-16": (listed(lambda text: text.encode("utf-16")), ["not UTF-8"]),
    "list utf-16 unmarked": (listed(lambda text: text.encode("utf-16-le")), ["null characters"]),
    "list utf-16 named": (
        listed(lambda text: text.encode("utf-16")),
        ["UTF-16", "save it as UTF-8"],
    ),
    "list is a workbook": (
        listed(lambda text: zipped_as("[Content_Types].xml")),
        ["an Excel workbook", "export it as CSV"],
    ),
    "list is a Parquet file": (listed(lambda text: b"PAR1" + bytes(99)), ["a Parquet file"]),
    "list with semicolons": (
        listed(lambda text: text.replace(",", ";")),
        ["separated by semicolons", "commas"],
    ),
    "list with tabs": (listed(lambda text: text.replace(",", "\t")), ["separated by tabs"]),
    "list of bars": (
        labelled((0, 1, 0, "rain|wind", 1, 0), "--multi_label"),
        ["line 5", "'rain|wind'", "separated by semicolons"],
    ),
    "list of numbers with a slash": (labelled((0, 1, 0, "0/1", 1, 0)), ["line 5", "semicolons"]),
    "list name nan": (labelled(("a", "b", "a", "NaN", "b", "a")), ["line 5", "label nan of 'd'"]),
    "list nul in an id": (listed(lambda text: text + "g\0,1,test"), ["null characters"]),
    "list nul in a label": (listed(lambda text: text + "g,\0,test"), ["null characters"]),
    "list of zeros": (listed(lambda text: bytes(5000)), ["null characters"]),
    "list of one line": (listed(lambda text: text + "g" * 2**21), ["over 1,048,576 characters"]),
    "list of a long cell": (listed(lambda text: text + "g" * 2**18), ["field larger"]),
    "list of a long quote": (listed(lambda text: text + '"' + "g\n" * 2**18), ["field larger"]),
    "list of commas": (listed(lambda text: text + "," * 10**6), ["has 1000001 cells"]),
    "list line breaks in a header": (
        listed(lambda text: '"a\nb",' + text.replace("label", "x")),
        ["a\\nb"],
    ),
    "list id twice": (listed(lambda text: text + "b,1,test"), ["'b' stands in line 3 as well"]),
    "list id empty": (listed(lambda text: text + " ,1,test"), ["line 8", "can be no file name"]),
    "list id above": (listed(lambda text: text + "../b,1,test"), ["line 8", "'../b'"]),
    "list id absolute": (listed(lambda text: text + "/b,1,test"), ["line 8", "'/b'"]),
    "list id too long": (listed(lambda text: text + "g" * 300 + ",1,test"), ["holds no features"]),
    "list clip without files": (
        listed(lambda text: text + "g,1,test"),
        ["1 of the 7 clips"],
    ),
    "list no test rows": (listed(lambda text: text.replace("test", "train")), ["no test rows"]),
    "list other split": (listed(lambda text: text.replace("test", "val")), ["line 6", "'val'"]),
    "list negative label": (labelled((0, 1, 0, -1, 1, 0)), ["from -1 to 1"]),
    "list labels from 2": (labelled((2, 3, 2, 3, 2, 3)), ["from 2 to 3"]),
    "list label off by one": (labelled((0, 1, 0, 1, 0, 2)), ["no training row has class 2"]),
    "list label huge": (labelled((0, 1, 0, 1, 0, 10**15)), ["from 0 to 1000000000000000"]),
    "list labels mixed": (labelled((0, 1, 0, "cat", 1, 0)), ["(0)", "(cat)"]),
    "list label nan": (labelled((0, 1, 0, "nan", 1, 0)), ["(nan)"]),
    "list label empty": (labelled((0, 1, 0, "", 1, 0)), ["line 5", "names no class"]),
    "list label half": (labelled((0, 1, 0, "1;", 1, 0), "--multi_label"), ["line 5", "'1;'"]),
    "list two labels": (labelled((0, 1, 0, "0;1", 1, 0)), ["line 5", "--multi_label"]),
    "list one class": (labelled(["cat"] * 6), ["only one class"]),
    "list one class of several": (labelled(["cat"] * 6, "--multi_label"), ["only one class"]),
    "list is a directory": (at_list(lambda path: path.mkdir()), ["is a directory"]),
    "list is a pipe": (at_list(os.mkfifo), ["not a regular file"]),
    "list is a loop of links": (at_list(loop), ["symbolic links"]),
}

ARRAYS = {
    **{
        f"npz cut in its {name}": (clip_d(SOUND_NPZ[:place]), ["is damaged"])
        for name, place in {
            "first byte": 0,
            "signature": 3,
            "local header": 20,
            "data": 60,
            "central directory": CENTRAL + 20,
            "end record": END + 10,
        }.items()
    },
    "npz directory damaged": (clip_d(flipped(SOUND_NPZ, CENTRAL)), ["is damaged"]),
    "npz data damaged": (clip_d(flipped(SOUND_NPZ, CENTRAL - 1)), ["is damaged"]),
    "npz beyond its data": (clip_d(with_sizes(SOUND_NPZ, 2**31)), ["audio announces shape (3,)"]),
    "npz deflate damaged": (
        clip_d(
            flipped(npz({"audio": np.ones(99), "visual": np.ones(9)}, zipfile.ZIP_DEFLATED), 50)
        ),
        ["d.npz"],
    ),
    "npz huge": (
        members({"audio": npy_of(header(f"({10**12},)"), bytes(12))}),
        ["(1000000000000,)", "but 12 bytes follow"],
    ),
    "npz huge by its directory": (
        clip_d(with_sizes(npz({"audio": npy_of(LARGE)}), 2**28 + len(npy_of(LARGE)))),
        ["audio holds 268,435,456 bytes"],
    ),
    "npz bomb": (bomb(2**25), ["audio holds 268,435,456 bytes"]),
    "npz bomb of the largest size": (bomb(2**24), ["audio features have 16777216 columns"]),
    "npz encrypted": (clip_d(encrypted(SOUND_NPZ)), ["audio is encrypted", "without a password"]),
    "npz of another method": (clip_d(method(SOUND_NPZ, 93)), ["method 93 of zip"]),
    "npz is an array": (clip_d(SOUND_NPY), ["a NumPy array (.npy), not a .npz file"]),
    "npz is a pickle": (clip_d(pickle.dumps(np.ones(3))), ["a Python pickle, not a .npz file"]),
    "npz of one column": (members({"audio": np.ones((3, 1))}), ["shape (3, 1)", "features[:, 0]"]),
    "npz of time behind": (
        members({"audio": np.ones((3, 7))}),
        ["audio features have 7 columns", "(T, D), time first"],
    ),
    "npz key missing": (members({"audio": None}), ["key audio is missing (keys there: visual)"]),
    "npz objects": (members({"audio": np.array([{}, None])}), ["real numbers", "object"]),
    "npz text": (members({"audio": np.array(["a"] * 3)}), ["real numbers", "<U1"]),
    "npz bool": (members({"visual": np.ones(5, bool)}), ["visual", "real numbers"]),
    "npz nan": (members({"audio": np.array([1, np.nan, 3])}), ["audio holds 1 NaN"]),
    "npz inf in a series": (members({"visual": np.full((2, 5), -np.inf)}), ["visual holds 10 NaN"]),
    "npz overflow": (members({"visual": np.full(5, 1e39)}), ["exceeds the range of float32"]),
    "npz empty": (members({"audio": np.ones(0)}), ["audio is empty"]),
    "npz no time steps": (members({"audio": np.ones((0, 3))}), ["audio is empty"]),
    "npz scalar": (members({"audio": np.float32(1)}), ["audio must have shape (D,)"]),
    "npz rank": (members({"audio": np.ones((1, 1, 3))}), ["(1, 1, 3)"]),
    "npz ragged": (members({"audio": np.ones(4)}), ["audio features have 4 columns"]),
    "npz is a directory": (at_clip(lambda path: path.mkdir()), ["is a directory"]),
    "npz is a pipe": (at_clip(os.mkfifo), ["not a regular file"]),
    "npz is a loop of links": (at_clip(loop), ["symbolic links"]),
    "npz is a dangling link": (at_clip(lambda path: path.symlink_to("gone")), ["does not exist"]),
    **{
        f"npy cut in its {name}": (npy_a(SOUND_NPY[:place]), [words])
        for name, place, words in (
            ("first byte", 0, "no sound .npy"),
            ("magic", 4, "no sound .npy"),
            ("version", 7, "no sound .npy"),
            ("header length", 9, "no sound .npy"),
            ("header", 40, "no sound .npy"),
            ("data", -1, "but 11 bytes follow"),
        )
    },
    "npy is an archive": (npy_a(SOUND_NPZ), ["a NumPy archive (.npz), not a .npy array"]),
    "npy is a pickle": (npy_a(pickle.dumps(np.ones(3))), ["a Python pickle, not a .npy array"]),
    "npy is a page": (npy_a(b"<!DOCTYPE html><p>quota"), ["a web page", "fetch it again"]),
    "npy version 3": (npy_a(npy_of(header(), bytes(12), 3)), ["version (3, 0)"]),
    "npy long header": (npy_a(npy_of(header() + " " * 20000, bytes(12), 2)), ["no sound .npy"]),
    "npy header of four gigabytes": (
        npy_a(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(50)),
        ["no sound .npy"],
    ),
    "npy header of minuses": (npy_a(npy_of("-" * 9000 + "1")), ["no sound .npy"]),
    "npy header of brackets": (npy_a(npy_of("[" * 9000)), ["no sound .npy"]),
    "npy header that is odd": (npy_a(npy_of("1is 2")), ["no sound .npy"]),
    "npy code for a header": (npy_a(npy_of("__import__('os').abort()")), ["no sound .npy"]),
    "npy no order": (npy_a(npy_of("{'descr': '<f4', 'shape': (3,)}", bytes(12))), ["no sound"]),
    "npy objects": (npy_a(npy(np.array([{}, None]))), ["real numbers", "object", "pickled"]),
    "npy huge": (
        npy_a(npy_of(header(f"({10**12},)"), bytes(99))),
        ["(1000000000000,)", "but 99"],
    ),
    "npy beyond numbers": (npy_a(npy_of(header(f"({10**4000},)"))), ["but 0 bytes follow"]),
    "npy longer": (npy_a(SOUND_NPY + b"\0"), ["13 bytes follow"]),
    "npy twice in a file": (npy_a(SOUND_NPY * 2), ["bytes follow"]),
    "npy negative": (npy_a(npy_of(header("(-3,)"), bytes(99))), ["(-3,)"]),
    "npy two negatives": (npy_a(npy_of(header("(-3, -1)"), bytes(99))), ["(-3, -1)"]),
    "npy empty and huge": (npy_a(npy_of(header(f"(0, {10**30})"))), ["is empty"]),
    "npy of 100 dimensions": (npy_a(npy_of(header(str((1,) * 100)), bytes(4))), ["100 dimensions"]),
    "npy is a pipe": (npy_a(os.mkfifo), ["not a regular file"]),
    "npy is a loop of links": (npy_a(loop), ["symbolic links"]),
}
