"""Rows a second that are written, read and streamed, beside a plain copy of the same bytes.

    python -m benchmarks.data_speed

The data are random, in the sizes of VEGAS unless --rows says otherwise, in a temporary folder (set
TMPDIR to measure another disk). Files come from the page cache after the warm-up. Clips and video
records are fewer (--clips). The last rows train an epoch, with rows held on the device and
streamed: what a stream costs where training is the slower part.
"""

import dataclasses
import functools
import pathlib
import shutil
import struct
import tempfile
from collections.abc import Callable

import google_crc32c
import jax
import numpy as np
from absl import flags
from tensorflow_datasets.proto import tf_example_pb2

from aadml_jax.data import (
    PairedFeatures,
    RetrievalDataset,
    load_feature_file,
    open_clip_files,
    open_feature_file,
)

# Past the face of `aadml_jax.data`, which leaves out what needs TFDS and is slow to import.
from aadml_jax.data.readers.tfds_folders import open_tfds_folder
from aadml_jax.data.readers.video_records import open_video_records
from aadml_jax.data.tfds_builders import write_tfds_folder
from aadml_jax.data.writers.feature_file import write_feature_file
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.local_data import load_local_data
from aadml_jax.training.parallel import one_device
from aadml_jax.training.state import init_state, run_keys
from aadml_jax.training.step import build_train_step, make_run_steps
from aadml_jax.training.streaming import make_stream_steps, read_ahead
from benchmarks import side_by_side
from experiments import command_line

_AUDIO_DIM, _VISUAL_DIM, _CLASSES, _TEST_ROWS = 128, 1024, 10, 400
_ROW_BYTES = 4 * (_AUDIO_DIM + _VISUAL_DIM)

_ROWS = flags.DEFINE_integer("rows", 22_482, "training rows", lower_bound=400)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 400, "rows of a batch", lower_bound=1)
_CLIPS = flags.DEFINE_integer("clips", 2_000, "clips, and video records", lower_bound=100)
side_by_side.define_flags(rounds=5)


def make_dataset(rows: int) -> RetrievalDataset:
    """Random rows with every class."""
    rng = np.random.default_rng(0)
    splits = (
        PairedFeatures(
            rng.standard_normal((count, _AUDIO_DIM), np.float32),
            rng.standard_normal((count, _VISUAL_DIM), np.float32),
            np.arange(count) % _CLASSES,
        )
        for count in (rows, _TEST_ROWS)
    )
    return RetrievalDataset("measured", *splits, _CLASSES, "random numbers")


def write_clips(dataset: RetrievalDataset, folder: pathlib.Path) -> pathlib.Path:
    """A list of clips, and an .npz file for each."""
    folder.mkdir()
    lines = ["clip_id,label,split"]
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        for number, (audio, visual, label) in enumerate(split.rows()):
            np.savez(folder / f"{name}{number}.npz", audio=audio, visual=visual)
            lines.append(f"{name}{number},{label},{name}")
    path = folder / "clips.csv"
    path.write_text("\n".join(lines))
    return path


def write_video_records(split: PairedFeatures, path: pathlib.Path) -> pathlib.Path:
    """A TFRecord file in the form of YouTube-8M."""

    def sealed(content: bytes) -> bytes:
        crc = google_crc32c.value(content)
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        return content + struct.pack("<I", masked)

    with open(path, "wb") as file:
        for number, (audio, visual, label) in enumerate(split.rows()):
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["id"].bytes_list.value.append(f"{path.stem}{number}".encode())
            feature["labels"].int64_list.value.append(int(label))
            feature["mean_audio"].float_list.value.extend(audio.tolist())
            feature["mean_rgb"].float_list.value.extend(visual.tolist())
            content = example.SerializeToString()
            file.write(sealed(struct.pack("<Q", len(content))) + sealed(content))
    return path


def make_prepare(
    open_source: Callable[[], RetrievalDataset], folder: pathlib.Path
) -> Callable[[], object]:
    """A function that writes the rows of a source as shards, each time anew."""
    numbers = iter(range(10**6))

    def prepare() -> None:
        data_dir = folder / f"written{next(numbers)}"
        dataset = dataclasses.replace(open_source(), name="measured")
        write_tfds_folder(dataset, data_dir)
        shutil.rmtree(data_dir)

    return prepare


def put_on_device(dataset: RetrievalDataset) -> None:
    """Reads, standardises and places the training rows, as a run does before its first step."""
    data, placement = load_local_data(dataset), one_device()
    jax.block_until_ready(placement.shard(data.train, data.num_train))


def make_epoch(dataset: RetrievalDataset, batch_size: int, *, streamed: bool) -> Callable:
    """A function that trains an epoch, its rows held or streamed."""
    config, placement = RecipeConfig(batch_size=batch_size), one_device()
    data = load_local_data(dataset, streamed=streamed)
    step = build_train_step(config, _CLASSES)
    common = {"batch_size": batch_size, "keys": run_keys(0), "placement": placement}
    if streamed:
        run_steps = make_stream_steps(
            step, data.train, standardization=data.standardization, **common
        )
    else:
        run_steps = make_run_steps(step, data.train, **common)
    state = [init_state(config, num_classes=_CLASSES, standardization=data.standardization)]

    def run() -> None:
        state[0] = run_steps(state[0], data.num_train // batch_size)
        jax.block_until_ready(state[0])

    return run


def subjects(
    folder: pathlib.Path, rows: int, clips: int, batch_size: int
) -> list[side_by_side.Subject]:
    """What is measured; units are rows."""
    path = folder / "features.h5"
    write_feature_file(make_dataset(rows), path)
    opened = dataclasses.replace(open_feature_file(path), name="measured")
    shards, _ = write_tfds_folder(opened, folder)
    few = make_dataset(clips)
    clip_list = write_clips(few, folder / "clips")
    records = [
        [write_video_records(split, folder / f"{name}.tfrecord")]
        for name, split in (("train", few.train), ("test", few.test))
    ]
    prepared = open_tfds_folder(shards)
    order = np.random.default_rng(1).permutation(rows)
    batches = order[: rows // batch_size * batch_size].reshape(-1, batch_size)

    def read_batches() -> None:
        for batch in batches:
            prepared.train.take(batch)

    def stream() -> None:
        for _ in read_ahead(
            lambda number: prepared.train.take(batches[number]), range(len(batches)), 16
        ):
            pass

    def read_by_tfds() -> None:
        import tensorflow_datasets as tfds

        source = tfds.builder_from_directory(shards).as_data_source(split="train")
        for batch in batches:
            source.__getitems__(batch.tolist())

    both, one, clip_rows = rows + _TEST_ROWS, batches.size, clips + _TEST_ROWS
    sources = (
        ("feature file to shards", lambda: open_feature_file(path), both),
        ("clips (.npz) to shards", lambda: open_clip_files(clip_list).dataset, clip_rows),
        (
            "video records to shards",
            lambda: open_video_records(*records, name="measured"),
            clip_rows,
        ),
    )
    reads = (
        ("copy of the feature file into memory", path.read_bytes, both),
        ("copy of the feature file on the disk", lambda: shutil.copyfile(path, folder / "x"), both),
        ("feature file onto the device", lambda: put_on_device(open_feature_file(path)), both),
        ("shards onto the device", lambda: put_on_device(open_tfds_folder(shards)), both),
        ("feature file: read and checked", lambda: load_feature_file(path), both),
        ("shards: read in order and checked", lambda: open_tfds_folder(shards).loaded(), both),
        (f"shards: random batches of {batch_size}", read_batches, one),
        ("the same by the decoder of TFDS, unchecked", read_by_tfds, one),
        ("the same ahead of the demand, in threads", stream, one),
        *((name, make_prepare(source, folder), units) for name, source, units in sources),
    )
    measured = [
        side_by_side.Subject(name, lambda run=run: run, units=units) for name, run, units in reads
    ]
    for word, is_streamed in (("held", False), ("streamed", True)):
        prepare = functools.partial(make_epoch, prepared, batch_size, streamed=is_streamed)
        name = f"training, rows {word}"
        measured.append(side_by_side.Subject(name, prepare, units=one, compiles=True))
    return measured


def main() -> None:
    """Measures and prints."""
    with side_by_side.session(None), tempfile.TemporaryDirectory() as folder:
        results = side_by_side.measure(
            subjects(pathlib.Path(folder), _ROWS.value, _CLIPS.value, _BATCH_SIZE.value)
        )
        table = side_by_side.Table(
            (f"{_ROWS.value:,} rows of {_ROW_BYTES:,} bytes", -43),
            ("µs a row: median (min–max)", 26),
            ("CPU µs", 7),
            ("rounds", 6),
            ("rows/s", 9),
            ("GB/s", 6),
            ("note", -1),
        )
        for result in results:
            speeds = "–", "–"
            if not result.reason:
                rate = 1 / result.wall
                speeds = f"{rate:,.0f}", f"{rate * _ROW_BYTES / 1e9:.2f}"
            table.row(result.subject.name, *result.cells(scale=1e6), *speeds, result.remark)


if __name__ == "__main__":
    command_line.run(main)
