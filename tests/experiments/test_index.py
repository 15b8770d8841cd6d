"""`experiments.index`: a new index, clips added to it, media files, and what is refused."""

import threading

import numpy as np
import pytest
from running import evaluate, train

import aadml_jax as aa
from aadml_jax._files import held_lock
from aadml_jax.data import open_feature_file, read_embeddings, read_provenance
from aadml_jax.errors import UserError
from experiments import embed as embed_binary
from experiments import index as binary

SMALL = {"epochs": 2, "eval_every": 2, "hidden_sizes": (16,), "loss": "contrastive"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, features):
    path = tmp_path_factory.mktemp("run")
    train(dataset="features", features_file=str(features), workdir=str(path), **SMALL)
    return path


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory, features):
    path = tmp_path_factory.mktemp("other")
    train(dataset="features", features_file=str(features), workdir=str(path), seed=1, **SMALL)
    return path


def index(folder, output, **options):
    path = binary.run(binary.Options(checkpoint=str(folder), output=str(output), **options))
    return read_embeddings(path).clips


def features_of(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_index_is_the_file_that_embed_writes(folder, tmp_path, capsys):
    embed_binary.run(embed_binary.Options(checkpoint=str(folder), output=str(tmp_path / "e.npz")))
    index(folder, tmp_path / "new" / "i.npz")
    assert "written to" in capsys.readouterr().out
    with np.load(tmp_path / "e.npz") as wanted, np.load(tmp_path / "new" / "i.npz") as found:
        assert sorted(wanted) == sorted(found)
        for key in wanted:
            np.testing.assert_array_equal(found[key].reshape(wanted[key].shape), wanted[key])
    assert evaluate(embeddings=str(tmp_path / "new" / "i.npz")) == evaluate(
        embeddings=str(tmp_path / "e.npz")
    )


@pytest.mark.parametrize("first", [embed_binary, binary])
def test_pairs_are_added_behind_those_that_are_there(folder, features, tmp_path, capsys, first):
    path = tmp_path / "i.npz"
    first.run(first.Options(checkpoint=str(folder), output=str(path)))
    capsys.readouterr()
    clips = index(folder, path, split="train", prefix="more/")
    assert capsys.readouterr().out.endswith(
        f"written to {path}, which holds 70 audio and 70 visual\n"
    )
    data, trained = open_feature_file(features), aa.load_run(folder)
    rows = [data.test.take(slice(None)), data.train.take(slice(None))]
    assert clips.is_paired
    assert clips.audio.ids == clips.visual.ids
    assert clips.audio.ids == (
        *(f"test/{row}" for row in range(20)),
        *(f"more/train/{row}" for row in range(50)),
    )
    np.testing.assert_array_equal(
        clips.audio.values, np.concatenate([trained.embed_audio(part.audio) for part in rows])
    )
    np.testing.assert_array_equal(
        clips.visual.values, np.concatenate([trained.embed_visual(part.visual) for part in rows])
    )
    np.testing.assert_array_equal(
        clips.visual.labels, np.concatenate([part.labels for part in rows])
    )
    made_by = read_provenance(path)
    assert (made_by.run, made_by.fingerprint) == (str(folder), trained.fingerprint)
    assert [source.rpartition(", ")[2] for source in made_by.sources] == ["test rows", "train rows"]


def test_one_modality_added_to_pairs_makes_them_no_pairs(folder, tmp_path):
    rng = np.random.default_rng(0)
    pairs = {"audio": rng.normal(size=(3, 8)), "visual": rng.normal(size=(3, 12)), "ids": [*"abc"]}
    index(folder, tmp_path / "i.npz", features_file=features_of(tmp_path / "1.npz", **pairs))
    alone = features_of(tmp_path / "2.npz", visual=rng.normal(size=(2, 12)), ids=["d", "e"])
    clips = index(folder, tmp_path / "i.npz", features_file=alone)
    assert not clips.is_paired
    assert (clips.audio.ids, clips.visual.ids) == (tuple("abc"), tuple("abcde"))
    # An id that only the other modality has is free.
    audio = features_of(tmp_path / "3.npz", audio=rng.normal(size=(1, 8)), ids=["d"])
    assert index(folder, tmp_path / "i.npz", features_file=audio).audio.ids == tuple("abcd")


def test_media_files_are_kept_by_clip_and_modality(folder, tmp_path, capsys):
    media = tmp_path / "media"
    media.mkdir()
    for name in ("a.wav", "a.png", "b, c.png"):
        (media / name).write_bytes(b"")
    (media / "list.csv").write_text(
        'note,ID,visual,audio\nx,a,a.png,a.wav\n,b,"b, c.png",\n\n,elsewhere,a.png,\n'
    )
    rng = np.random.default_rng(0)
    arrays = {"audio": rng.normal(size=(3, 8)), "visual": rng.normal(size=(3, 12))}
    path = tmp_path / "i.npz"
    first = features_of(tmp_path / "1.npz", **arrays, ids=["a", "b", "c"])
    clips = index(folder, path, features_file=first, media=str(media / "list.csv"), prefix="first/")
    assert "holds 3 audio and 3 visual (1 and 2 with media)\n" in capsys.readouterr().out
    assert clips.audio.ids == ("first/a", "first/b", "first/c")
    assert clips.audio.media == (str(media / "a.wav"), "", "")
    assert clips.visual.media == (str(media / "a.png"), str(media / "b, c.png"), "")
    clips = index(folder, path, features_file=first)
    assert clips.visual.ids[3:] == ("a", "b", "c")
    assert clips.visual.media == (str(media / "a.png"), str(media / "b, c.png"), "", "", "", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"the header must name the columns id,audio,visual once each; it reads nothing"),
        ("id,path\n", "once each; it reads id,path"),
        ("id,audio,audio\n", "once each; it reads id,audio,audio"),
        ("id,audio\na,here.wav,x\n", "list.csv, line 2 has 3 cells, but the header 2"),
        ("id,audio\na,none.wav\n", r"list.csv, line 2: .*none\.wav is not a file; correct"),
        ("id,audio\na,.\n", "line 2: .* is not a file"),
        ("id,audio\na,here.wav\na,here.wav\n", "line 3: the id 'a' stands in line 2 as well"),
        ("id,audio\na,gs://bucket/a.wav\n", "line 2: gs://bucket/a.wav is a URL"),
        ("id,audio\nz,here.wav\n", "names no file of any of these clips; their ids are a, b"),
        (None, "list.csv does not exist; give the path of a CSV list of media files"),
    ],
)
def test_a_wrong_list_of_media_files_is_one_line(folder, tmp_path, content, said):
    (tmp_path / "here.wav").write_bytes(b"")
    if content is not None:
        (tmp_path / "list.csv").write_text(content)
    given = features_of(tmp_path / "in.npz", audio=np.ones((2, 8)), ids=["a", "b"])
    before = names_in(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        index(folder, tmp_path / "i.npz", features_file=given, media=str(tmp_path / "list.csv"))
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == before


def refused(folder, path, said, **options):
    """Checks that one line refuses to add clips, and that the index stays as it was."""
    before = path.read_bytes()
    with pytest.raises(UserError, match=said) as caught:
        index(folder, path, **options)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_ids_that_are_there_already_are_refused_by_name(folder, tmp_path):
    index(folder, tmp_path / "i.npz")
    refused(
        folder,
        tmp_path / "i.npz",
        r"i\.npz: the id 'test/0' is there already \(and 19 others of the new clips\); .*--pref",
    )
    one = features_of(tmp_path / "1.npz", audio=np.ones((2, 8)), ids=["x", "test/7"])
    refused(
        folder,
        tmp_path / "i.npz",
        r"audio_embeddings of .*i\.npz: the id 'test/7' is there already",
        features_file=one,
    )


def test_an_index_of_another_run_is_refused(folder, other_folder, tmp_path):
    path = tmp_path / "i.npz"
    index(folder, path)
    own, other = (aa.load_run(run).fingerprint for run in (folder, other_folder))
    refused(
        other_folder,
        path,
        f"was made by the latest checkpoint of {folder} .*{own[:8]}.* not by the latest one of "
        f"{other_folder} .{other[:8]}.; choose another file",
        split="train",
    )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"audio_embeddings": np.eye(3)}, "does not say by which run its embeddings were made"),
        ({"x": np.eye(3)}, "does not say by which run"),
        ({"fingerprint": ["a", "b"]}, r"fingerprint must be one word, got shape \(2,\)"),
    ],
)
def test_a_file_that_no_run_made_is_refused(folder, tmp_path, arrays, said):
    np.savez(tmp_path / "i.npz", **arrays)
    refused(folder, tmp_path / "i.npz", said)


def test_what_is_no_archive_is_not_written_over(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(folder, tmp_path / "notes.txt", "notes.txt is .*not a .npz file")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"audio": np.ones((2, 9))}, "audio features have 9 columns, but the run in .* on 8"),
        (
            {"audio": np.ones((2, 8))},
            "audio_embeddings of .*i.npz has labels, but audio of .* none",
        ),
        ({"audio": np.ones((2, 8)), "labels": np.eye(2)}, r"shapes \(20,\) and \(2, 2\)"),
        (
            {"audio": np.ones((2, 8)), "labels": [0, 1], "class_names": ["x", "y"]},
            "has the class names none, but .* x, y; number and name the classes alike",
        ),
    ],
)
def test_clips_that_do_not_fit_the_index_are_refused(folder, tmp_path, arrays, said):
    index(folder, tmp_path / "i.npz")
    given = features_of(tmp_path / "in.npz", **arrays)
    refused(folder, tmp_path / "i.npz", said, features_file=given)


def test_an_index_in_use_by_another_process_is_left_alone(folder, tmp_path):
    path = tmp_path / "i.npz"
    index(folder, path)
    with held_lock(tmp_path / ".i.npz.lock", "the index is"):
        refused(folder, path, r"i\.npz is in use by another process; wait for it", split="train")


def test_two_that_add_at_once_lose_nothing(folder, tmp_path, monkeypatch):
    path, is_read, may_write = tmp_path / "i.npz", threading.Event(), threading.Event()
    index(folder, path)
    write = binary.write_embeddings

    def slow(*arguments, **options):
        is_read.set()
        assert may_write.wait(60)
        return write(*arguments, **options)

    monkeypatch.setattr(binary, "write_embeddings", slow)
    first = threading.Thread(target=index, args=(folder, path), kwargs={"split": "train"})
    first.start()
    assert is_read.wait(60)
    refused(folder, path, "in use by another process", prefix="again/")
    may_write.set()
    first.join()
    clips = index(folder, path, prefix="again/")
    assert len(clips.audio) == 20 + 50 + 20


def test_a_link_to_an_index_stays_one(folder, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "i.npz").symlink_to(tmp_path / "disk" / "i.npz")
    index(folder, tmp_path / "disk" / "i.npz")
    assert len(index(folder, tmp_path / "i.npz", split="train").audio) == 70
    assert (tmp_path / "i.npz").is_symlink()
    assert len(read_embeddings(tmp_path / "disk" / "i.npz").clips.audio) == 70


def test_an_interrupted_addition_leaves_the_index_as_it_was(folder, tmp_path, monkeypatch):
    path = tmp_path / "i.npz"
    index(folder, path)
    before = path.read_bytes()

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index(folder, path, split="train")
    assert path.read_bytes() == before
    assert names_in(tmp_path) == [".i.npz.lock", "i.npz"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checkpoint": None}, "--checkpoint is needed"),
        ({"output": None}, "--output is needed: the index to write or to add to"),
        ({"which": "first"}, "--which=first must be one of latest, best"),
        ({"split": "dev"}, "--split=dev must be one of test, train, all"),
        ({"features_file": "none.npz"}, r"none\.npz does not exist"),
        ({"output": "gs://bucket/i.npz"}, "gs://bucket/i.npz is a URL"),
        ({"output": "/proc/nowhere/i.npz"}, "/proc/nowhere/i.npz cannot be written"),
    ],
)
def test_a_users_mistake_is_one_line_and_writes_nothing(
    folder, tmp_path, monkeypatch, options, said
):
    monkeypatch.chdir(tmp_path)
    options = {"checkpoint": str(folder), "output": "i.npz", **options}
    with pytest.raises(UserError, match=said) as caught:
        binary.run(binary.Options(**options))
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []
