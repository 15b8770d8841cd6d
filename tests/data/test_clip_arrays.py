"""Files of features and of embeddings (.npz): pairs, single modalities, labels known or not."""

import pickle

import numpy as np
import pytest

from aadml_jax.data import ClipArrays, ModalityRows, read_clip_features, read_embeddings
from aadml_jax.data.writers.embeddings import write_embeddings
from aadml_jax.errors import UserError

AUDIO = np.arange(6.0).reshape(3, 2)
VISUAL = np.arange(12.0).reshape(3, 4)
EMBEDDED = {"audio_embeddings": AUDIO, "visual_embeddings": -AUDIO}


def saved(folder, **arrays):
    path = folder / "file.npz"
    np.savez(path, **arrays)
    return path


def test_pairs_without_ids_are_numbered_by_their_rows(tmp_path):
    clips = read_clip_features(saved(tmp_path, audio=AUDIO, visual=VISUAL.astype(np.int16)))
    assert clips.is_paired
    np.testing.assert_array_equal(clips.audio.values, AUDIO)
    np.testing.assert_array_equal(clips.visual.values, VISUAL)
    assert clips.visual.values.dtype == np.float32
    assert clips.audio.ids == clips.visual.ids == ("0", "1", "2")
    assert clips.audio.labels is None
    assert clips.class_names == ()


def test_ids_and_labels_of_pairs_are_those_of_both_modalities(tmp_path):
    path = saved(
        tmp_path,
        audio=AUDIO,
        visual=VISUAL,
        ids=["a/1", "b", "Ä"],
        labels=np.array([2, 0, 1], np.uint8),
        class_names=["x", "y", "z"],
    )
    clips = read_clip_features(path)
    for side in (clips.audio, clips.visual):
        assert side.ids == ("a/1", "b", "Ä")
        np.testing.assert_array_equal(side.labels, [2, 0, 1])
        assert side.labels.dtype == np.int32
    assert clips.class_names == ("x", "y", "z")


def test_one_modality_is_enough(tmp_path):
    clips = read_clip_features(saved(tmp_path, visual=VISUAL, ids=[7, 8, 9]))
    assert clips.audio is None
    assert clips.visual.ids == ("7", "8", "9")
    assert list(clips.rows()) == ["visual"]


def test_modalities_that_are_no_pairs_have_ids_and_labels_of_their_own(tmp_path):
    path = saved(
        tmp_path,
        audio_embeddings=AUDIO,
        visual_embeddings=np.ones((5, 2)),
        audio_labels=[[1, 0, 1], [0, 1, 0], [0, 0, 1]],
        visual_labels=np.eye(3, dtype=bool)[[0, 1, 2, 0, 0]],
        audio_ids=["a", "b", "c"],
        similarity="posterior",
    )
    clips, similarity = read_embeddings(path)
    assert similarity == "posterior"
    assert not clips.is_paired
    assert (clips.audio.ids, clips.visual.ids) == (("a", "b", "c"), ("0", "1", "2", "3", "4"))
    np.testing.assert_array_equal(clips.audio.labels[0], [True, False, True])
    assert clips.visual.labels.dtype == bool


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize("labels", [None, np.array([1, 0, 1], np.int32), np.eye(3, dtype=bool)])
def test_embeddings_are_read_as_they_were_written(tmp_path, is_paired, labels):
    sides = [
        ModalityRows(values, ("a", "b", "c"), labels, "x")
        for values in (AUDIO, np.float32(1) / 3 + AUDIO)
    ]
    names = ("p", "q", "r")
    clips = ClipArrays(*sides, is_paired=is_paired, class_names=names)
    path = write_embeddings(
        clips, tmp_path / "new" / "file.npz", {"similarity": "cosine", "epoch": 3, "run": "/x"}
    )
    again, similarity = read_embeddings(path)
    assert (again.is_paired, again.class_names, similarity) == (
        is_paired,
        names,
        "cosine",
    )
    for side, wanted in zip((again.audio, again.visual), sides, strict=True):
        np.testing.assert_array_equal(side.values, wanted.values)
        assert side.ids == wanted.ids
        assert (side.labels is None) == (labels is None)
        if labels is not None:
            np.testing.assert_array_equal(side.labels, labels)
            assert side.labels.dtype == labels.dtype
    with np.load(path) as file:
        assert (int(file["epoch"]), str(file["run"])) == (3, "/x")
    assert [entry.name for entry in path.parent.iterdir()] == ["file.npz"]


def test_a_file_that_exists_is_not_written_over(tmp_path):
    path = saved(tmp_path, audio=AUDIO)
    before = path.read_bytes()
    clips = ClipArrays(ModalityRows(AUDIO, ("a", "b", "c"), None, "x"), None, is_paired=True)
    with pytest.raises(UserError, match=r"file\.npz exists already; remove it or choose another"):
        write_embeddings(clips, path, {})
    assert path.read_bytes() == before
    with pytest.raises(UserError, match=r"cannot be written \(File exists\)"):
        write_embeddings(clips, path / "file.npz", {})


class Loaded:
    def __reduce__(self):
        return pytest.fail, ("the file ran code",)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"features": AUDIO}, "has none of the keys audio_embeddings and visual_embeddings"),
        (EMBEDDED | {"audio_embeddings": AUDIO[:, 0]}, r"must be a matrix.*got shape \(3,\)"),
        (EMBEDDED | {"audio_embeddings": AUDIO[:0]}, "audio_embeddings is empty"),
        (EMBEDDED | {"audio_embeddings": AUDIO * np.nan}, "holds 6 NaN .*first in row 0"),
        (EMBEDDED | {"audio_embeddings": AUDIO > 3}, "must hold real numbers, got dtype bool"),
        (EMBEDDED | {"audio_embeddings": AUDIO[:2]}, "audio has 2, visual has 3.*labels of each"),
        (EMBEDDED | {"audio_embeddings": VISUAL}, "have 4 columns, visual ones 2; embed both in"),
        (EMBEDDED | {"ids": ["a", "b"]}, "vectors has 3, ids has 2"),
        (EMBEDDED | {"ids": ["a", "b", "a"]}, "rows 0 and 2 have the same id 'a'"),
        (EMBEDDED | {"ids": AUDIO}, "ids must hold text or whole numbers, got dtype float64"),
        (EMBEDDED | {"ids": [["a"], ["b"], ["c"]]}, r"ids must be a vector, got shape \(3, 1\)"),
        (EMBEDDED | {"labels": [0, 1]}, "vectors has 3, ids has 3, labels has 2"),
        (EMBEDDED | {"labels": [0, 1, -1]}, "row 2 holds -1; class numbers must be whole"),
        (EMBEDDED | {"labels": ["a", "b", "c"]}, "labels must hold class numbers or multi-hot"),
        (EMBEDDED | {"labels": [[0, 1], [0, 2], [1, 0]]}, "row 1 holds 2 for class 1"),
        (EMBEDDED | {"labels": [0, 1, 2], "class_names": ["a", "b"]}, "row 2 holds class 2, but 2"),
        (EMBEDDED | {"labels": np.eye(3), "class_names": ["a", "b"]}, "3 columns, but there are 2"),
        (EMBEDDED | {"labels": [0, 1, 2], "audio_ids": ["a", "b", "c"]}, "labels of pairs and aud"),
        ({"audio_embeddings": AUDIO, "visual_ids": ["a"]}, "key visual_ids, but not visual_embed"),
        (
            EMBEDDED | {"audio_labels": [0, 1, 2], "visual_labels": np.eye(3)},
            r"labels have shapes \(3,\) and \(3, 3\)",
        ),
        (EMBEDDED | {"similarity": ["cosine", "x"]}, r"similarity must be one word, got shape \(2"),
        (EMBEDDED | {"class_names": [1, 2]}, "class_names must hold text, got dtype int64"),
        (EMBEDDED | {"ids": np.array([Loaded()] * 3)}, "objects are pickled, and loading them ru"),
    ],
)
def test_what_is_no_file_of_embeddings_is_one_line(tmp_path, arrays, said):
    path = saved(tmp_path, **arrays)
    with pytest.raises(UserError, match=said) as caught:
        read_embeddings(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_or_missing_file_is_one_line(tmp_path):
    path = saved(tmp_path, **EMBEDDED)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"file\.npz is damaged"):
        read_embeddings(path)
    place = content.index(AUDIO.tobytes())
    path.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    with pytest.raises(UserError, match=r"file\.npz is damaged \(Bad CRC-32"):
        read_embeddings(path)
    path.write_bytes(pickle.dumps(Loaded()))
    with pytest.raises(UserError, match=r"file\.npz is a Python pickle"):
        read_embeddings(path)
    with pytest.raises(UserError, match="does not exist; give the path of a"):
        read_embeddings(tmp_path / "none.npz")
