"""Files of features and of embeddings (.npz): pairs, single modalities, labels known or not."""

import pickle

import numpy as np
import pytest

from aadml_jax.data import (
    ClipArrays,
    ModalityRows,
    appended,
    read_clip_features,
    read_embeddings,
    read_provenance,
)
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


def test_a_file_is_replaced_where_that_is_asked_for(tmp_path):
    path = saved(tmp_path, audio=AUDIO)
    clips = ClipArrays(ModalityRows(AUDIO, tuple("abc"), None, "x"), None, is_paired=True)
    write_embeddings(clips, path, {}, replace=True)
    assert read_embeddings(path).clips.audio.ids == tuple("abc")


@pytest.mark.parametrize("is_paired", [True, False])
def test_media_files_and_provenance_are_read_as_they_were_written(tmp_path, is_paired):
    sides = (
        ModalityRows(AUDIO, tuple("abc"), None, "x", ("/m/ä.wav", "", "/m/c.wav")),
        ModalityRows(AUDIO, tuple("abc"), None, "x"),
    )
    facts = {"run": "/r", "which": "best", "fingerprint": "f", "source": ["one", "two"]}
    clips = ClipArrays(*sides, is_paired=is_paired)
    path = write_embeddings(clips, tmp_path / "file.npz", facts)
    again = read_embeddings(path).clips
    assert again.audio.media == ("/m/ä.wav", "", "/m/c.wav")
    assert again.visual.media == ()
    assert read_provenance(path) == ("/r", "best", "f", ("one", "two"))
    write_embeddings(clips, path, {"source": "one"}, replace=True)
    assert read_provenance(path) == (None, None, None, ("one",))


def rows(ids, first=0.0, labels=None, media=()):
    values = first + np.arange(2.0 * len(ids)).reshape(-1, 2)
    return ModalityRows(values, tuple(ids), labels, f"rows {ids}", media)


def test_pairs_added_to_pairs_are_pairs():
    first = ClipArrays(rows("ab", labels=[0, 1]), rows("ab", 5, labels=[0, 1]), True, ("x", "y"))
    second = ClipArrays(rows("c", 9, [1]), rows("c", 7, [1], ("c.png",)), True, ("x", "y"))
    both = appended(first, second)
    assert both.is_paired
    assert both.class_names == ("x", "y")
    assert both.audio.ids == both.visual.ids == tuple("abc")
    np.testing.assert_array_equal(both.audio.values, [[0, 1], [2, 3], [9, 10]])
    np.testing.assert_array_equal(both.visual.values, [[5, 6], [7, 8], [7, 8]])
    np.testing.assert_array_equal(both.audio.labels, [0, 1, 1])
    assert (both.audio.media, both.visual.media) == ((), ("", "", "c.png"))


def test_one_modality_added_to_others_is_no_pair_of_theirs():
    pairs = ClipArrays(rows("ab"), rows("ab"), is_paired=True)
    audio = ClipArrays(rows("c"), None, is_paired=True)
    visual = ClipArrays(None, rows("c"), is_paired=True, class_names=("x", "y"))
    assert not appended(pairs, audio).is_paired
    assert appended(pairs, audio).audio.ids == tuple("abc")
    assert not appended(audio, visual).is_paired
    assert list(appended(visual, audio).rows()) == ["audio", "visual"]
    assert appended(audio, visual).class_names == ("x", "y")
    assert appended(audio, ClipArrays(rows("d"), None, is_paired=True)).is_paired


@pytest.mark.parametrize(
    ("added", "names", "said"),
    [
        (rows("cb", labels=[0, 1]), "xy", "rows ab: the id 'b' is there already; give new clips"),
        (rows("ab", labels=[0, 1]), "xy", r"the id 'a' is there already \(and 1 others of the n"),
        (rows("c"), "xy", "rows ab has labels, but rows c has none"),
        (rows("c", labels=[[0, 1]]), "xy", r"have shapes \(2,\) and \(1, 2\)"),
        (rows("c", labels=[0]), "yx", "has the class names x, y, but clips y, x; number and name"),
        (rows("c", labels=[0]), "", "has the class names x, y, but clips none"),
        (ModalityRows(VISUAL, tuple("cde"), [0, 1, 0], "wide"), "xy", "2 columns, but wide 4"),
    ],
)
def test_clips_that_do_not_fit_others_are_not_added(added, names, said):
    first = ClipArrays(rows("ab", labels=[0, 1]), None, is_paired=True, class_names=tuple("xy"))
    with pytest.raises(UserError, match=said):
        appended(first, ClipArrays(added, None, is_paired=True, class_names=tuple(names)))


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
        (EMBEDDED | {"audio_media": ["x.wav"]}, "vectors has 3, ids has 3, media files has 1"),
        (EMBEDDED | {"visual_media": [1, 2, 3]}, "visual_media must hold text, got dtype int64"),
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
