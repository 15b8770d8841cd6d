"""A data set prepared as shards, and trained on from there."""

import dataclasses
import struct

import google_crc32c
import numpy as np
import pytest
from running import evaluate, log_of, run, train, write_feature_file
from tensorflow_datasets.proto import tf_example_pb2

from aadml_jax.data import open_dataset, open_feature_file
from aadml_jax.errors import UserError
from aadml_jax.training import loop
from experiments import prepare

SMALL = {
    "epochs": 4,
    "eval_every": 2,
    "batch_size": 16,
    "hidden_sizes": (16,),
    "learning_rate": 0.01,
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A feature file and the folder of data sets that was made from it."""
    folder = tmp_path_factory.mktemp("data")
    path = write_feature_file(folder / "features.h5")
    status, output, errors = run(
        "prepare",
        "--dataset=features",
        f"--features_file={path}",
        "--name=mine",
        f"--output={folder}",
    )
    assert status == 0, errors
    assert errors == ""
    rows = [line.split() for line in output.splitlines()]
    assert ["rows", "50", "20"] in rows
    assert ["class", "0", "17", "7"] in rows
    assert ["duplicate", "rows", "0", "0"] in rows
    assert f"--dataset=tfds:mine --data_dir={folder}" in output
    return path, folder


def write_video_records(path, videos):
    def masked(content):
        crc = google_crc32c.value(content)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32

    with open(path, "wb") as file:
        for video_id, labels, audio, visual in videos:
            feature = (example := tf_example_pb2.Example()).features.feature
            feature["id"].bytes_list.value.append(video_id.encode())
            feature["labels"].int64_list.value.extend(labels)
            feature["mean_audio"].float_list.value.extend(audio)
            feature["mean_rgb"].float_list.value.extend(visual)
            content = example.SerializeToString()
            length = struct.pack("<Q", len(content))
            file.write(length + struct.pack("<I", masked(length)))
            file.write(content + struct.pack("<I", masked(content)))


def test_a_run_goes_on_from_file_to_shards_to_stream(prepared, tmp_path, capsys):
    pytest.importorskip("grain", reason="the extra 'stream' is not installed")
    path, data = prepared
    file, moved = tmp_path / "file", tmp_path / "moved"
    from_file = {**SMALL, "dataset": "features", "features_file": str(path)}
    from_shards = {**SMALL, "dataset": "tfds:mine", "data_dir": str(data), "workdir": str(moved)}
    train(**from_file, workdir=str(file))
    train(**from_file | {"epochs": 1}, workdir=str(moved))
    train(**from_shards | {"epochs": 2})
    # Up to here the rows are held, and every byte is the same.
    assert log_of(moved)[1] == log_of(file)[1]
    capsys.readouterr()
    result = train(**from_shards, input="stream")
    assert "resuming after 2 of 4 epochs" in capsys.readouterr().out
    for line, wanted in zip(log_of(moved)[1:], log_of(file)[1:], strict=True):
        assert line == pytest.approx(wanted, rel=1e-4, abs=1e-4)

    assert evaluate(checkpoint=str(moved))["map"] == result["map"]
    assert capsys.readouterr().err == ""
    elsewhere = data.rename(tmp_path / "elsewhere")
    try:
        with pytest.raises(UserError, match="not exist any more; set --data_dir to the folder"):
            evaluate(checkpoint=str(moved))
        evaluate(checkpoint=str(moved), data_dir=str(elsewhere))
        assert f"pairs of {elsewhere}/mine/1.0.0" in capsys.readouterr().out
    finally:
        elsewhere.rename(data)


def test_a_smoke_run_streams_its_few_rows(prepared, tmp_path, monkeypatch):
    pytest.importorskip("grain", reason="the extra 'stream' is not installed")
    settings = {**SMALL, "dataset": "tfds:mine", "data_dir": str(prepared[1]), "smoke": True}
    settings["epochs"] = 1
    held = train(**settings, workdir=str(tmp_path / "held"))
    monkeypatch.setattr(loop, "make_run_steps", None)  # what trains on rows that are held
    streamed = train(**settings, input="stream", workdir=str(tmp_path / "streamed"))
    assert streamed["map"] == pytest.approx(held["map"], abs=1e-4)


def test_an_unknown_name_among_shards_is_named_with_those_that_are_there(prepared, tmp_path):
    folder = str(tmp_path / "run")
    with pytest.raises(UserError, match=r"none holds no data set \(there are in") as caught:
        train(dataset="tfds:none", data_dir=str(prepared[1]), workdir=folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": None}, "--output is needed"),
        ({"dataset": "vegass"}, "did you mean vegas?"),
        ({"dataset": "clip", "clip_list": "x"}, "did you mean clips?"),
        ({"name": "Not/Good"}, "does not suit a data set of TFDS"),
        (
            {"dataset": "av_digits", "multi_label": True},
            "--multi_label is for --dataset=features or clips, not av_digits",
        ),
        ({"dataset": "clips"}, "needs a list of them; set --clip_list=FILE.csv"),
        ({"clip_list": "x"}, "--clip_list is for --dataset=clips, not synthetic"),
        ({"dataset": "video_records", "train_records": ("no*",)}, "no file matches"),
        ({"num_classes": 0}, "--num_classes=0 must be at least 1"),
        ({"output": "features.h5/x"}, "cannot be written (Not a directory)"),
    ],
)
def test_mistakes_in_preparation_get_one_line(prepared, monkeypatch, options, message):
    monkeypatch.chdir(prepared[1])
    with pytest.raises(UserError) as caught:
        prepare.run(prepare.Options(**{"output": ".", **options}))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"name": "mine"}, {"output": "features.h5"}])
def test_an_output_that_is_there_is_refused_before_anything_is_read(prepared, monkeypatch, options):
    monkeypatch.chdir(prepared[1])
    monkeypatch.setattr(prepare, "open_source", lambda _: pytest.fail("the data were opened"))
    with pytest.raises(UserError, match="exists already; remove it or choose"):
        prepare.run(prepare.Options(**{"output": ".", **options}))


def test_clips_of_several_classes_go_from_a_list_to_shards_to_a_file(tmp_path, capsys):
    random = np.random.default_rng(1)
    lines = ["split,label,clip_id"]
    for number in range(40):
        labels = sorted({"rain", "Zug"} if number % 4 == 0 else {["rain", "Zug", "à"][number % 3]})
        features = {"audio": random.normal(size=8), "visual": random.normal(size=(3, 12))}
        # The first classes' clips are told apart by their features.
        features["audio"][: len(labels)] += 5 * number % 3
        if number != 7:
            np.savez(tmp_path / f"ключ {number}.npz", **features)
        lines.append(f"{'test' if number >= 30 else 'train'},{';'.join(labels)},ключ {number}")
    (tmp_path / "Clips one.csv").write_text("\n".join(lines), encoding="utf-8")
    options = prepare.Options(
        dataset="clips",
        clip_list=str(tmp_path / "Clips one.csv"),
        multi_label=True,
        output=str(tmp_path),
    )
    with pytest.raises(UserError, match="no features of 1 of the 40 clips"):
        prepare.run(options)
    prepare.run(dataclasses.replace(options, allow_missing=True))
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "missing train clips: ключ 7\n" in output
    rows = [line.split() for line in output.splitlines()]
    assert ["missing", "1", "0"] in rows
    assert ["rows", "29", "10"] in rows and ["shared", "rows", "0"] in rows
    counts = [sum("à" in line for line in lines[1:31]), sum("à" in line for line in lines[31:])]
    # The missing clip is of the class Zug.
    assert ["à", *map(str, counts)] in rows
    source = {"dataset": "tfds:clips_one", "data_dir": str(tmp_path)}
    result = train(**SMALL | {"epochs": 1}, **source, workdir=str(tmp_path / "run"))
    assert result["map"]["mean"] > 0
    capsys.readouterr()

    prepare.run(prepare.Options(**source, output=str(tmp_path / "one.h5")))
    output, errors = capsys.readouterr()
    assert errors == ""
    assert ["à", *map(str, counts)] in [line.split() for line in output.splitlines()]
    dataset = open_feature_file(tmp_path / "one.h5", multi_label=True)
    assert dataset.fingerprint() == open_dataset("tfds:clips_one", data_dir=tmp_path).fingerprint()
    assert dataset.class_names == ("Zug", "rain", "à")


def test_video_records_go_to_a_feature_file(tmp_path, capsys):
    random = np.random.default_rng(2)
    for name, count in (("train00", 25), ("train01", 15), ("validate00", 12)):
        write_video_records(
            tmp_path / f"{name}.tfrecord",
            [
                (
                    f"{name}-{number}",
                    [number % 5, 5 + number % 2],
                    random.normal(size=4),
                    random.normal(size=6),
                )
                for number in range(count)
            ],
        )
    options = prepare.Options(
        dataset="video_records",
        train_records=(f"{tmp_path}/train*.tfrecord",),
        test_records=(f"{tmp_path}/validate00.tfrecord",),
        num_classes=9,
        output=str(tmp_path / "videos.h5"),
    )
    assert prepare.run(options) == tmp_path / "videos.h5"
    output, errors = capsys.readouterr()
    assert errors == ""
    assert ["rows", "40", "12"] in [line.split() for line in output.splitlines()]
    # Numbers 0 to 4, 5 and 6 are used in both files.
    assert "no train rows in 2 classes: class 7, class 8\n" in output
    command = output.splitlines()[-1]
    assert command.endswith(f"--features_file={tmp_path / 'videos.h5'} --multi_label")
    dataset = open_feature_file(tmp_path / "videos.h5", multi_label=True)
    assert dataset.num_classes == 9
    # Rows stand in the order of files and records: number 3 of the second file is row 28.
    assert np.flatnonzero(dataset.train.labels[28]).tolist() == [3, 6]
