"""Lists of clips: whatever is unusual but valid is read with the right values."""

import pathlib
import zipfile

import numpy as np
import pytest
from damaged_clips import clip_set
from written_by_hand import CLIP_LABELS, IDS, clip_list, features, npy, npy_of, npz

from aadml_jax.data.readers.clip_files import open_clip_files
from aadml_jax.data.readers.npy_files import read_npy
from aadml_jax.errors import UserError

SPLITS = ("train",) * 4 + ("test",) * 2
VECTORS = [features(number) for number in range(6)]


def opened(folder, text=None, clips=None, **options):
    clip_set(folder, text, clips)
    return open_clip_files(folder / "list.csv", **options)


def same_values(dataset, labels=CLIP_LABELS, rtol=0.0):
    loaded = dataset.loaded()
    for split, rows in ((loaded.train, slice(0, 4)), (loaded.test, slice(4, 6))):
        np.testing.assert_allclose(split.audio, [v[0] for v in VECTORS[rows]], rtol=rtol)
        np.testing.assert_allclose(split.visual, [v[1] for v in VECTORS[rows]], rtol=rtol)
        assert (split.audio.dtype, split.visual.dtype) == (np.float32, np.float32)
        np.testing.assert_array_equal(split.labels, np.asarray(labels)[rows])


def test_a_list_is_read_in_its_order(tmp_path):
    dataset, missing = opened(tmp_path)
    same_values(dataset)
    assert missing == {"train": (), "test": ()}
    assert (dataset.name, dataset.num_classes, dataset.class_names) == ("list", 2, ())
    assert dataset.source == f"{tmp_path / 'list.csv'}, {tmp_path}"
    assert dataset.source_files[0] == str(tmp_path / "list.csv")
    assert dataset.source_files[1:] == tuple(str(tmp_path / f"{name}.npz") for name in IDS)
    taken = dataset.train.take(np.array([3, 0, 2]))
    np.testing.assert_array_equal(taken.audio, [VECTORS[row][0] for row in (3, 0, 2)])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("\n", "\n\n") + "\n\n",
        lambda text: text[:-1],
        lambda text: text.replace("clip_id", " Clip ID "),
        lambda text: text.replace(",", ", ").replace("train", "train "),
        lambda text: text.replace("a,0,train", '"a","0","train"'),
    ],
    ids=["mark", "crlf", "cr", "blank lines", "no end", "title", "spaces", "quotes"],
)
def test_forms_of_csv(tmp_path, change):
    same_values(opened(tmp_path, change(clip_list())).dataset)


def test_columns_in_any_order_beside_others(tmp_path):
    rows = [
        (split, 'a, "b"\nc', label, clip_id)
        for clip_id, label, split in zip(IDS, CLIP_LABELS, SPLITS, strict=True)
    ]
    text = clip_list(rows, header=("split", "remark", "label", "clip_id"))
    same_values(opened(tmp_path, text).dataset)


def test_ids_are_names_of_files(tmp_path):
    ids = ("Füße", "猫 🐈 1", "a/b", "a/c.d", "x,y", "-")
    (tmp_path / "clips" / "a").mkdir(parents=True)
    for number, clip_id in enumerate(ids):
        content = npz(dict(zip(("audio", "visual"), VECTORS[number], strict=True)))
        (tmp_path / "clips" / f"{clip_id}.npz").write_bytes(content)
    path = tmp_path / "Meine Liste.csv"
    path.write_text(clip_list(zip(ids, CLIP_LABELS, SPLITS, strict=True)), encoding="utf-8")
    dataset = open_clip_files(path, tmp_path / "clips").dataset
    same_values(dataset)
    assert dataset.name == "meine_liste"


def test_class_names_and_numbers(tmp_path):
    def labelled(labels):
        return clip_list(zip(IDS, labels, SPLITS, strict=True))

    dataset = opened(tmp_path, labelled([number + 1 for number in CLIP_LABELS])).dataset
    same_values(dataset)
    assert dataset.num_classes == 2
    names = [("Zug", "Ärger")[number] for number in CLIP_LABELS]
    dataset = opened(tmp_path, labelled(names)).dataset
    same_values(dataset)
    assert dataset.class_names == ("Zug", "Ärger")
    several = ("b;a", "c", " a ; c ", "b", "b;b", "a")
    dataset = opened(tmp_path, labelled(several), multi_label=True).dataset
    expected = [[1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0]]
    same_values(dataset, np.array(expected, bool))
    assert dataset.class_names == ("a", "b", "c")
    numbers = opened(tmp_path, labelled(("1;3", "1", "1", "1", "1", "3")), multi_label=True).dataset
    np.testing.assert_array_equal(numbers.test.labels, [[1, 0, 0], [0, 0, 1]])


def test_missing_clips_are_left_out_where_allowed(tmp_path):
    # The class of a clip that is left out does not count.
    dataset, missing = opened(tmp_path, clip_list() + "ghost,7,train\n", allow_missing=True)
    same_values(dataset)
    assert missing == {"train": ("ghost",), "test": ()}


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">f8", "i1", ">i4", "<u2", "g"])
def test_dtypes_and_series(tmp_path, dtype):
    clips, expected = {}, []
    for number, clip_id in enumerate(IDS):
        series = np.random.default_rng(number).integers(0, 100, (7, 3)).astype(dtype)
        expected.append([np.float32(sum(map(float, column)) / 7) for column in series.T])
        order = "F" if number % 2 else "C"
        clips[clip_id] = npz(
            {"audio": np.asarray(series, order=order), "visual": series[0]},
            zipfile.ZIP_DEFLATED if number % 3 else zipfile.ZIP_STORED,
        )
    dataset = opened(tmp_path, clips=clips).dataset
    assert dataset.averaged_over == ("time (7 steps in the first clip)", "")
    train = dataset.loaded().train
    np.testing.assert_allclose(train.audio, expected[:4], rtol=1e-7)
    assert train.visual.dtype == np.dtype("=f4")


def test_series_after_a_vector_are_refused(tmp_path):
    """The first line of a run tells of averaging by the first clip."""
    clips = {IDS[3]: npz({"audio": np.ones((5, len(VECTORS[3][0]))), "visual": VECTORS[3][1]})}
    clip_set(tmp_path, None, clips)
    dataset, _ = open_clip_files(tmp_path / "list.csv")
    with pytest.raises(UserError, match=rf"{IDS[3]}.npz: audio .*\(5, \d+\), a series"):
        dataset.loaded()


def test_arrays_in_files_of_their_own(tmp_path):
    clip_set(tmp_path, clips=dict.fromkeys(IDS))
    for modality, place in (("audio", 0), ("visual", 1)):
        (tmp_path / modality).mkdir()
        for number, clip_id in enumerate(IDS):
            (tmp_path / modality / f"{clip_id}.npy").write_bytes(npy(VECTORS[number][place]))
    same_values(open_clip_files(tmp_path / "list.csv").dataset)


@pytest.mark.parametrize(
    ("header", "version"),
    [
        ("{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }", 1),
        ("{'shape':(2,3),'fortran_order':True,'descr':'>i2'}     ", 2),
        ("{'descr': '>i2', 'fortran_order': True, 'shape': (2L, 3L), }", 1),
    ],
    ids=["numpy", "other order", "python 2"],
)
def test_npy_written_by_hand(tmp_path, header, version):
    data = bytes([0, 1, 0, 2, 255, 255, 0, 4, 1, 0, 0, 6])
    path = pathlib.Path(tmp_path / "x.npy")
    path.write_bytes(npy_of(header, data, version))
    np.testing.assert_array_equal(read_npy(path), [[1, -1, 256], [2, 4, 6]])
