"""The binaries on clips of several classes, in this process: what they wire together."""

import dataclasses
import json

import h5py
import numpy as np
import pytest

from aadml_jax.data import open_dataset
from aadml_jax.data.tfds_builders import write_tfds_folder
from aadml_jax.errors import UserError
from aadml_jax.training.config import TrainConfig
from experiments import evaluate, train

SMALL = {
    "epochs": 4,
    "eval_every": 2,
    "batch_size": 16,  # of eight devices
    "hidden_sizes": (16,),
    "learning_rate": 1e-2,
    "tensorboard": False,
}


def run(binary, **given):
    """Calls a binary in this process, with these options."""
    if binary == "train":
        return train.run(TrainConfig.of(**given), frozenset(given))
    return evaluate.run(evaluate.Options(**given))


def write_features(path, num_shared=0):
    """Clips that look and sound like the sum of their classes; the first test rows are leaked."""
    random = np.random.default_rng(0)
    splits = {}
    for split, rows in (("train", 50), ("test", 21)):
        labels = random.random((rows, 4)) < 0.3
        labels[np.arange(rows), np.arange(rows) % 4] = True
        splits[split] = {"lab": labels}
    for part, columns in (("audio", 8), ("visual", 12)):
        directions = random.normal(size=(4, columns))
        for content in splits.values():
            noise = random.normal(size=(len(content["lab"]), columns))
            content[part] = (content["lab"] @ directions + 0.5 * noise).astype(np.float32)
    for part in ("audio", "visual"):
        splits["test"][part][:num_shared] = splits["train"][part][:num_shared]
    with h5py.File(path, "w") as file:
        for split, content in splits.items():
            for part, values in content.items():
                file[f"{part}_{split}"] = values.astype(np.float32)
    return str(path)


def test_a_run_is_trained_and_evaluated_from_its_folder(tmp_path, capsys):
    path, folder = write_features(tmp_path / "several.h5"), tmp_path / "run"
    config = {"dataset": "features", "features_file": path, "workdir": str(folder), **SMALL}
    with pytest.raises(UserError, match="set --multi_label"):
        run("train", **config)
    trained = run("train", **config, multi_label=True)
    output, errors = capsys.readouterr()
    assert "50 training and 21 test pairs, 4 classes" in output
    assert "warning" not in errors
    result = json.loads((folder / "result.json").read_text())
    assert result == json.loads(json.dumps(trained))
    assert result["map"]["mean"] > result["chance"] + 0.05

    for source in ({}, {"features_file": path}):
        numbers = tmp_path / "numbers.json"
        run("evaluate", checkpoint=str(folder), output=str(numbers), **source)
        evaluated = json.loads(numbers.read_text())
        assert evaluated["map"] == pytest.approx(result["map"], abs=1e-6)
        assert evaluated["chance"] == result["chance"]

    with pytest.raises(UserError, match="are not those it was trained on"):
        run("train", **config | {"features_file": write_one_class(tmp_path / "one.h5")})
    # The flag is not part of what was trained: from shards the run goes on without it.
    dataset = open_dataset("features", features_file=path, multi_label=True)
    write_tfds_folder(dataclasses.replace(dataset, name="several"), tmp_path)
    config |= {"dataset": "tfds:several", "data_dir": str(tmp_path), "features_file": None}
    run("train", **config)
    assert "already trained to epoch" in capsys.readouterr().out


def write_one_class(path):
    write_features(path)
    with h5py.File(path, "r+") as file:
        for split in ("train", "test"):
            labels = np.argmax(file[f"lab_{split}"][:], axis=1)
            del file[f"lab_{split}"]
            file[f"lab_{split}"] = labels
    return str(path)


def test_rows_of_both_splits_are_warned_of_in_one_line(tmp_path, capsys):
    path = write_features(tmp_path / "leaking.h5", num_shared=3)
    config = {**SMALL, "epochs": 1, "eval_every": 1}
    folder = tmp_path / "run"
    run(
        "train", dataset="features", features_file=path, multi_label=True, workdir=str(folder),
        **config,
    )  # fmt: skip
    assert capsys.readouterr().err.splitlines()[0] == (
        "warning: 3 of the 21 test rows have the features of a training row: MAP on them is not a "
        "measure of generalisation; remove them from one of the splits"
    )
    assert json.loads((folder / "config.json").read_text())["data"]["shared_rows"] == 3
