"""What an accelerator does with this library, in under eight minutes on one GPU.

    python -m benchmarks.accelerator --output=FOLDER
    python -m benchmarks.accelerator --output=FOLDER --smoke

Measures the first device in parts, each for itself: one that fails is reported with its reason, and
the others go on. FOLDER gets accelerator.md, to be read, and accelerator.json with the same
numbers, both written anew after every part. The exit status is 1 if a part failed. --smoke shows on
a CPU, at small sizes, that all of it works; its times mean nothing.
"""

import dataclasses
import datetime
import json
import math
import pathlib
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from aadml_jax._files import local_path, written_as_a_whole
from aadml_jax.errors import UserError, one_line
from aadml_jax.reports import markdown
from aadml_jax.reports.tables import Table
from aadml_jax.training.run_folder import environment, versions
from aadml_jax.training.settings import POSITIVE, check_settings, setting
from aadml_jax.training.signals import Interrupted
from benchmarks import accelerator_programs as programs
from benchmarks import accelerator_runs as runs
from benchmarks import side_by_side
from benchmarks.accelerator_bench import FULL, SMOKE, Bench, Findings, Sizes
from experiments import command_line

DONE, FAILED, LEFT_OUT = "done", "failed", "left out"


class Part(NamedTuple):
    """One thing to measure: its heading, and what measures it."""

    title: str
    measure: Callable[[Bench], Findings]


# In the order of their worth: what comes last is left out first where time is short. The peak of
# memory is that of all parts before it.
PARTS = {
    "whole_run": Part("A whole run", runs.time_whole_run),
    "losses": Part("Steps by loss, and the roofline", programs.measure_losses),
    "determinism": Part("Determinism", runs.check_determinism),
    "ties": Part("Ties in top_k", programs.check_ties),
    "precision": Part("MAP in float32 and bfloat16", runs.compare_precisions),
    "seeds": Part("Seeds stacked in one program", runs.time_stacked_seeds),
    "evaluation": Part("Evaluation of many clips", programs.measure_evaluation),
    "checkpoints": Part("A checkpoint from CPU to device and back", runs.check_crossing),
    "products": Part("Precision of matrix products", programs.measure_products),
    "peers": Part("Steps beside PyTorch's", programs.measure_peers),
    "batches": Part("Steps beside PyTorch's, by batch size", programs.measure_batches),
    "memory": Part("Peak memory", programs.read_memory),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to write it."""

    output: str | None = setting(None, "folder for accelerator.md and accelerator.json")
    minutes: float = setting(8.0, "minutes after which no further part is begun", bounds=POSITIVE)
    smoke: bool = setting(False, "small sizes, to see on a CPU that all parts work")
    deterministic: bool = setting(False, "deterministic operations of XLA, for all parts")
    parts: tuple[str, ...] | None = setting(None, f"parts to measure, of {', '.join(PARTS)}")


def run(options: Options, sizes: Sizes | None = None) -> dict[str, Any]:
    """Measures the first device, and writes what it found.

    Args:
      options: what to measure.
      sizes: how much; default those of --smoke or of an accelerator.

    Returns:
      The content of accelerator.json.

    Raises:
      UserError: if the options cannot be, the folder cannot be written to, or only a CPU is there
        without --smoke.
      Interrupted: after a signal; what was measured before it is written.
    """
    check_settings(options)
    chosen = tuple(PARTS) if options.parts is None else options.parts
    if unknown := [name for name in chosen if name not in PARTS]:
        raise UserError(f"--parts={unknown[0]} is not known; known are {', '.join(PARTS)}")
    device = jax.devices()[0]
    if device.platform == "cpu" and not options.smoke:
        raise UserError(
            "JAX finds no accelerator here, and a CPU would take hours; add --smoke for small sizes"
        )
    folder = _made_folder(options.output)
    began = time.monotonic()
    report = _head(device, options)
    with tempfile.TemporaryDirectory(prefix="aadml_jax_") as scratch:
        bench = Bench(
            device,
            sizes or (SMOKE if options.smoke else FULL),
            pathlib.Path(scratch),
            deadline=began + 60 * options.minutes,
            deterministic=options.deterministic,
        )
        for name in PARTS:
            if name not in chosen:
                continue
            print(f"{PARTS[name].title} …", flush=True)
            part = _measured(PARTS[name], bench)
            print(f"  {part['status']}, {part['seconds']:.1f} s: {part['answer']}", flush=True)
            report["parts"][name] = part
            report["seconds"] = time.monotonic() - began
            _write(folder, report)
    return report


def _made_folder(output: str | None) -> pathlib.Path:
    if output is None:
        raise UserError("--output is needed: the folder for accelerator.md and accelerator.json")
    folder = local_path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--output={output} cannot be written to ({error.strerror}); choose another folder"
        ) from error
    return folder


def _head(device: Any, options: Options) -> dict[str, Any]:
    """What the numbers are numbers of."""
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "host": f"{platform.system()} {platform.machine()}, {side_by_side.processor()}, "
        f"{side_by_side.cores()} core(s)",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "environment": environment(),
        "smoke": options.smoke,
        "deterministic": options.deterministic,
        "seconds": 0.0,
        "parts": {},
    }


def _measured(part: Part, bench: Bench) -> dict[str, Any]:
    """What a part found, as JSON has it; whatever it raises is its outcome."""
    began = time.monotonic()
    found = Findings("", {})
    status, reason = DONE, None
    try:
        if bench.is_late():
            raise side_by_side.NotRunError("the time was used up; --minutes gives more")
        found = part.measure(bench)
        if found.failures:
            status, reason = FAILED, "; ".join(found.failures)
    except Interrupted:
        raise
    except side_by_side.NotRunError as error:
        status, reason = LEFT_OUT, one_line(error)
    except Exception as error:  # one part's failure is not the end of the others
        status, reason = FAILED, f"{type(error).__name__}: {one_line(error)}"
        traceback.print_exc()  # the line in the files will not tell where
    statistics = bench.device.memory_stats() or {}
    return {
        "title": part.title,
        "status": status,
        "reason": reason,
        "seconds": time.monotonic() - began,
        "peak_bytes_so_far": statistics.get("peak_bytes_in_use"),
        "answer": "; ".join(text for text in (found.answer, reason) if text),
        "numbers": _as_json(found.numbers),
        "tables": {table.title: table.records() for table in found.tables},
        "markdown": [*(table.markdown() for table in found.tables), *found.notes],
    }


def _as_json(value: Any) -> Any:
    """Numbers with names in place of those that JSON does not have."""
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _write(folder: pathlib.Path, report: dict[str, Any]) -> None:
    content = {
        **report,
        "parts": {
            name: {key: value for key, value in part.items() if key != "markdown"}
            for name, part in report["parts"].items()
        },
    }
    for name, text in (
        ("accelerator.json", json.dumps(content, indent=2, allow_nan=False)),
        ("accelerator.md", "\n\n".join(_in_words(report))),
    ):
        with written_as_a_whole(folder / name) as file:
            file.write(text + "\n")


def _in_words(report: dict[str, Any]) -> Iterator[str]:
    """The paragraphs of the Markdown file."""
    yield f"# aadml_jax on {markdown.escape(report['device'])}"
    if report["smoke"]:
        yield "At the small sizes of `--smoke`: it is known to work, and no time means anything."
    more = report["num_devices"] - 1
    settings = ", ".join(
        f"{name} {'–' if value in (None, '') else value}"
        for name, value in {**report["versions"], **report["environment"]}.items()
    )
    yield "\n".join(
        f"- {markdown.escape(line)}"
        for line in (
            f"device: {report['device']} ({report['platform']})"
            + f", the first of {more + 1}; the others are not used" * (more > 0),
            f"host: {report['host']}",
            f"date: {report['date']}; {report['seconds']:.0f} s in all",
            f"versions and settings: {settings}",
            "deterministic operations of XLA: " + ("on" if report["deterministic"] else "off"),
        )
    )
    rows = [
        [part["title"], part["status"], f"{part['seconds']:.1f}", part["answer"]]
        for part in report["parts"].values()
    ]
    yield Table("what was found", ["part", "outcome", "s", "answer"], rows).markdown().strip()
    for part in report["parts"].values():
        yield f"## {part['title']}"
        if part["status"] != DONE:
            yield markdown.paragraph(f"{part['status']}: {part['reason']}")
        for paragraph in part["markdown"]:
            yield paragraph.strip()


def main() -> int:
    """Sets the process up, measures, and says by its exit status whether a part failed."""
    options, _ = command_line.options_from_flags(Options)
    if options.deterministic:
        command_line.set_up_determinism()
    with tempfile.TemporaryDirectory(prefix="aadml_jax_") as cache:
        # Of its own, so that a program is compiled once, and first times are those of compilation.
        command_line.set_up_compilation_cache(cache)
        report = run(options)
    failed = [name for name, part in report["parts"].items() if part["status"] == FAILED]
    print(f"written to {options.output}/accelerator.md and accelerator.json")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
