"""Exports a run's towers: `python -m experiments.export --checkpoint=RUN --output=FOLDER`.

Each is an artifact of `jax.export` for any number of rows, on CPUs, CUDA GPUs and TPUs, with its
parameters and the standardisation of its features. A program needs jax and flatbuffers to run it:

    import jax.export
    import numpy as np

    with open("FOLDER/audio.jax_export", "rb") as file:
        embed_audio = jax.export.deserialize(bytearray(file.read())).call
    features = np.load("features.npy")                    # float32 [N, Da], as they were extracted
    embeddings = np.asarray(embed_audio(features))        # float32 [N, C]

`model.json` in the folder says of which run they are, and by which similarity to rank.
"""

import dataclasses
import pathlib

from aadml_jax._files import require_absent
from aadml_jax.errors import UserError
from aadml_jax.training.exported_towers import require_flatbuffers, write_exported_towers
from aadml_jax.training.loaded_runs import load_run
from aadml_jax.training.settings import check_settings, setting
from experiments import command_line


@dataclasses.dataclass(frozen=True)
class Options:
    """Which run to export, and where to."""

    checkpoint: str | None = setting(None, "run folder: the --workdir of the training")
    which: str = setting("latest", "checkpoint to export", choices=("latest", "best"))
    output: str | None = setting(None, "folder to write, which must not exist")


def run(options: Options) -> pathlib.Path:
    """Exports the towers of a run.

    Returns:
      The folder that was written.

    Raises:
      UserError: if the run cannot be read, or the folder is there or cannot be written.
    """
    check_settings(options)
    if options.checkpoint is None:
        raise UserError("--checkpoint is needed: the --workdir of a training run")
    if options.output is None:
        raise UserError("--output is needed: the folder to write")
    require_absent(options.output, "folder")
    require_flatbuffers()
    trained = load_run(options.checkpoint, which=options.which)
    path = write_exported_towers(trained, options.output)
    files = ", ".join(
        f"{file.name} ({file.stat().st_size:,} bytes)" for file in sorted(path.iterdir())
    )
    print(
        f"both towers of the {trained.which} checkpoint of {trained.folder}, epoch "
        f"{trained.epoch}: {files}\n\nwritten to {path}"
    )
    return path


def main() -> None:
    """Exports what the flags name."""
    run(command_line.options_from_flags(Options)[0])


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
