"""A data set prepared as shards, and trained on from there."""

import json
import struct

import google_crc32c
import numpy as np
import pytest
from forked_runs import ForkedRuns
from running import run, write_feature_file
from tensorflow_datasets.proto import tf_example_pb2

from aadml_jax.data import open_dataset, open_feature_file

FLAGS = (
    "--epochs=4",
    "--eval_every=2",
    "--batch_size=16",
    "--hidden_sizes=16",
    "--learning_rate=0.01",
    "--notensorboard",
)


@pytest.fixture(scope="module")
def runs():
    with ForkedRuns() as started:
        yield started


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


def train(folder, *flags):
    status, output, errors = run("train", f"--workdir={folder}", *FLAGS, *flags)
    assert status == 0, errors
    return output


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_from_file_to_shards_to_stream(prepared, tmp_path):
    pytest.importorskip("grain", reason="the extra 'stream' is not installed")
    path, data = prepared
    file, moved = tmp_path / "file", tmp_path / "moved"
    from_file = ("--dataset=features", f"--features_file={path}")
    from_shards = ("--dataset=tfds:mine", f"--data_dir={data}")
    train(file, *from_file)
    train(moved, *from_file, "--epochs=1")
    train(moved, *from_shards, "--epochs=2")
    # Up to here the rows are held, and every byte is the same.
    assert log_of(moved)[1] == log_of(file)[1]
    assert "resuming after 2 of 4 epochs" in train(moved, *from_shards, "--input=stream")
    for line, wanted in zip(log_of(moved)[1:], log_of(file)[1:], strict=True):
        assert line == pytest.approx(wanted, rel=1e-4, abs=1e-4)

    status, _, errors = run("evaluate", f"--checkpoint={moved}", f"--output={tmp_path / 'n'}")
    assert (status, errors) == (0, "")
    result = json.loads((moved / "result.json").read_text())
    assert json.loads((tmp_path / "n").read_text())["map"] == result["map"]

    elsewhere = data.rename(tmp_path / "elsewhere")
    try:
        status, _, errors = run("evaluate", f"--checkpoint={moved}")
        assert status == 2 and "does not exist any more; set --data_dir to the folder" in errors
        status, output, _ = run("evaluate", f"--checkpoint={moved}", f"--data_dir={elsewhere}")
        assert status == 0 and f"pairs of {elsewhere}/mine/1.0.0" in output
    finally:
        elsewhere.rename(data)


def test_a_smoke_run_streams_its_few_rows(prepared, tmp_path):
    pytest.importorskip("grain", reason="the extra 'stream' is not installed")
    output = train(
        tmp_path / "run",
        "--dataset=tfds:mine",
        f"--data_dir={prepared[1]}",
        "--input=stream",
        "--smoke",
    )
    assert "MAP" in output


@pytest.mark.parametrize(
    ("binary", "flags", "message"),
    [
        ("train", ("--input=stream",), "--input=stream reads data sets that were prepared for it"),
        (
            "train",
            ("--dataset=tfds:none", "--data_dir={0}"),
            "none holds no data set (there are in",
        ),
        ("train", ("--dataset=tfds:mine",), "needs the folder that holds it; set --data_dir"),
    ],
)
def test_mistakes_in_training_get_one_line(prepared, tmp_path, binary, flags, message):
    flags = [flag.format(prepared[1]) for flag in flags]
    status, _, errors = run(binary, *flags, cwd=tmp_path)
    assert status == 2
    assert errors.count("\n") == 1 and message in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--output is needed"),
        (("--output={0}", "--dataset=vegass"), "did you mean vegas?"),
        (("--output={0}", "--dataset=clip", "--clip_list=x"), "did you mean clips?"),
        (("--output={0}", "--name=Not/Good"), "does not suit a data set of TFDS"),
        (("--output={0}", "--name=mine"), "exists already; remove it or choose"),
        (("--output={0}/features.h5",), "exists already; remove it or choose"),
        (
            ("--output={0}", "--dataset=av_digits", "--multi_label"),
            "--multi_label is for --dataset=features or clips, not av_digits",
        ),
        (("--output={0}", "--dataset=clips"), "needs a list of them; set --clip_list=FILE.csv"),
        (("--output={0}", "--clip_list=x"), "--clip_list is for --dataset=clips, not synthetic"),
        (
            ("--output={0}", "--dataset=video_records", "--train_records={0}/no*"),
            "no file matches",
        ),
        (("--output={0}", "--num_classes=0"), "--num_classes=0 must be at least 1"),
        (("--output={0}/features.h5/x",), "cannot be written (Not a directory)"),
    ],
)
def test_mistakes_in_preparation_get_one_line(prepared, runs, flags, message):
    ended = runs.run("prepare", *(flag.format(prepared[1]) for flag in flags))
    assert ended.status == 2
    assert ended.errors.count("\n") == 1 and message in ended.errors


def test_clips_of_several_classes_go_from_a_list_to_shards_to_a_file(runs, tmp_path):
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
    flags = ("--dataset=clips", f"--clip_list={tmp_path / 'Clips one.csv'}", "--multi_label")
    refused = runs.run("prepare", *flags, f"--output={tmp_path}")
    assert refused.status == 2 and "no features of 1 of the 40 clips" in refused.errors
    status, output, errors = run("prepare", *flags, f"--output={tmp_path}", "--allow_missing")
    assert (status, errors) == (0, "")
    assert "missing train clips: ключ 7\n" in output
    rows = [line.split() for line in output.splitlines()]
    assert ["missing", "1", "0"] in rows
    assert ["rows", "29", "10"] in rows and ["shared", "rows", "0"] in rows
    counts = [sum("à" in line for line in lines[1:31]), sum("à" in line for line in lines[31:])]
    # The missing clip is of the class Zug.
    assert ["à", *map(str, counts)] in rows
    output = train(tmp_path / "run", "--dataset=tfds:clips_one", f"--data_dir={tmp_path}")
    assert "MAP" in output

    source = ("--dataset=tfds:clips_one", f"--data_dir={tmp_path}")
    written = runs.run("prepare", *source, f"--output={tmp_path / 'one.h5'}")
    assert (written.status, written.errors) == (0, "")
    assert ["à", *map(str, counts)] in [line.split() for line in written.output.splitlines()]
    dataset = open_feature_file(tmp_path / "one.h5", multi_label=True)
    assert dataset.fingerprint() == open_dataset("tfds:clips_one", data_dir=tmp_path).fingerprint()
    assert dataset.class_names == ("Zug", "rain", "à")


def test_video_records_go_to_a_feature_file(tmp_path):
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
    status, output, errors = run(
        "prepare",
        "--dataset=video_records",
        f"--train_records={tmp_path}/train*.tfrecord",
        f"--test_records={tmp_path}/validate00.tfrecord",
        "--num_classes=9",
        f"--output={tmp_path / 'videos.h5'}",
    )
    assert (status, errors) == (0, "")
    assert ["rows", "40", "12"] in [line.split() for line in output.splitlines()]
    # Numbers 0 to 4, 5 and 6 are used in both files.
    assert "no train rows in 2 classes: class 7, class 8\n" in output
    command = output.splitlines()[-1]
    assert command.endswith(f"--features_file={tmp_path / 'videos.h5'} --multi_label")
    dataset = open_feature_file(tmp_path / "videos.h5", multi_label=True)
    assert dataset.num_classes == 9
    # Rows stand in the order of files and records: number 3 of the second file is row 28.
    assert np.flatnonzero(dataset.train.labels[28]).tolist() == [3, 6]
