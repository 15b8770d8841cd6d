"""`benchmarks.accelerator` on a CPU, at sizes at which its times mean nothing."""

import dataclasses
import json
import math
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import SIMPLE

from aadml_jax.data import SyntheticSpec
from aadml_jax.errors import UserError
from benchmarks import (
    accelerator,
    accelerator_bench,
    accelerator_programs,
    accelerator_runs,
    step_subjects,
)
from benchmarks.accelerator import Options, Part
from benchmarks.accelerator_bench import FULL, SMOKE, Bench, Findings, Run
from benchmarks.side_by_side import NotRunError
from experiments import command_line

_FEW = SyntheticSpec(num_classes=3, audio_dim=8, visual_dim=12, train_size=20, test_size=10)
TINY = dataclasses.replace(
    SMOKE,
    losses=("contrastive",),
    hidden_sizes=(4,),
    batch_size=10,
    batch_sizes=(10,),
    steps=2,
    rounds=1,
    seconds=0.0,
    whole_run=_FEW,
    short_run=_FEW,
    whole_epochs=4,
    short_epochs=4,
    map_epochs=2,
    seeds=2,
    clips=40,
    checked_queries=5,
    tied=((5, 30, 3),),
    product=16,
)


@pytest.fixture
def bench(tmp_path):
    return Bench(jax.devices()[0], TINY, tmp_path, deadline=time.monotonic() + 3600)


def run(folder, **options):
    return accelerator.run(Options(output=str(folder), smoke=True, **options), TINY)


def with_parts(monkeypatch, **measures):
    parts = {name: Part(f"the {name} part", measure) for name, measure in measures.items()}
    monkeypatch.setattr(accelerator, "PARTS", parts)


def device(**attributes):
    return types.SimpleNamespace(**attributes)


def succeed(bench):
    return Findings("fine", {"value": 1.5})


def fail(bench):
    raise ValueError("it broke\non two lines")


def test_every_part_runs_on_a_cpu_and_both_files_tell_of_it(tmp_path, monkeypatch):
    # The steps beside PyTorch's: one of ours is enough.
    few = {"AA triplet": step_subjects.OURS["AA triplet"]}
    monkeypatch.setattr(step_subjects, "OURS", few)
    monkeypatch.setattr(Bench, "cpu", jax.devices()[1])  # which computes the same as the first
    config = Bench.config
    monkeypatch.setattr(
        Bench, "config", lambda self, dataset, **changes: config(self, dataset, **SIMPLE, **changes)
    )
    report = run(tmp_path)
    outcomes = {name: part["status"] for name, part in report["parts"].items()}
    assert outcomes.pop("memory") == "left out"  # there are no statistics of a CPU
    assert outcomes == dict.fromkeys(outcomes, "done"), report
    assert outcomes.keys() == accelerator.PARTS.keys() - {"memory"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "accelerator.json",
        "accelerator.md",
    ]
    numbers = json.loads((tmp_path / "accelerator.json").read_text())
    parts = {name: part["numbers"] for name, part in numbers["parts"].items()}
    assert parts["whole_run"]["steps"] == 4 * (20 // 10)
    assert parts["whole_run"]["seconds"] > 0
    assert parts["losses"]["seconds_per_step"].keys() == {"contrastive"}
    assert parts["determinism"]["same_log"] and parts["determinism"]["same_parameters"]
    assert parts["checkpoints"]["distances"] == dict.fromkeys(
        ("CPU throughout", "device throughout", "CPU, then device", "device, then CPU"), 0
    )
    assert parts["ties"] == {"by_index": True}
    assert parts["products"]["relative_error"]["HIGHEST"] < 1e-6
    assert parts["evaluation"]["off_by"] < 1e-6
    text = (tmp_path / "accelerator.md").read_text()
    for name, part in report["parts"].items():
        assert f"## {part['title']}\n" in text
        assert (f"| {part['title']} | {part['status']} |") in text, name
    assert "small sizes of `--smoke`" in text
    assert "left out: JAX keeps no memory statistics of a cpu" in text


def test_a_part_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def find_a_failure(bench):
        return Findings("half of it", {}, failures=["the other half: failed"])

    with_parts(monkeypatch, broken=fail, half=find_a_failure, sound=succeed)
    report = run(tmp_path)
    numbers = json.loads((tmp_path / "accelerator.json").read_text())
    for parts in (report["parts"], numbers["parts"]):
        assert [part["status"] for part in parts.values()] == ["failed", "failed", "done"]
        assert parts["broken"]["reason"] == "ValueError: it broke on two lines"
        assert parts["half"]["reason"] == "the other half: failed"
        assert parts["sound"]["numbers"] == {"value": 1.5}
    text = (tmp_path / "accelerator.md").read_text()
    assert "| the broken part | failed |" in text
    assert "failed: ValueError: it broke on two lines" in text
    assert "half of it; the other half: failed" in text
    assert "in fail\n" in capsys.readouterr().err  # the traceback


@pytest.mark.parametrize(("measure", "status"), [(succeed, 0), (fail, 1)])
def test_the_exit_status_says_whether_a_part_failed(tmp_path, monkeypatch, measure, status):
    with_parts(monkeypatch, only=measure)
    options = Options(output=str(tmp_path), smoke=True)
    monkeypatch.setattr(command_line, "options_from_flags", lambda kind: (options, frozenset()))
    monkeypatch.setattr(command_line, "set_up_compilation_cache", lambda folder: None)
    assert accelerator.main() == status


def test_what_the_time_does_not_reach_is_named(tmp_path, monkeypatch):
    def last(bench):
        bench.deadline = time.monotonic() - 1
        left_out = []
        assert list(bench.in_time([1, 2], left_out)) == []
        return Findings("", {"left_out": left_out})

    with_parts(monkeypatch, first=succeed, last=last, late=succeed)
    parts = run(tmp_path)["parts"]
    assert [part["status"] for part in parts.values()] == ["done", "done", "left out"]
    assert parts["last"]["numbers"] == {"left_out": ["1", "2"]}
    assert "--minutes" in parts["late"]["reason"]
    assert "left out: the time was used up" in (tmp_path / "accelerator.md").read_text()


def test_numbers_that_json_does_not_have_are_named(tmp_path, monkeypatch):
    with_parts(monkeypatch, odd=lambda bench: Findings("", {"nested": {"value": math.nan}}))
    run(tmp_path)
    numbers = json.loads((tmp_path / "accelerator.json").read_text())
    assert numbers["parts"]["odd"]["numbers"] == {"nested": {"value": "nan"}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output": None}, "--output is needed"),
        ({"output": "/proc/none"}, "--output=/proc/none cannot be written to"),
        ({"smoke": False}, "no accelerator here, .* --smoke"),
        ({"parts": ("losses", "x")}, "--parts=x is not known; known are whole_run, losses"),
        ({"minutes": 0.0}, "--minutes=0.0 must be above 0"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        accelerator.run(Options(**{"output": str(tmp_path), "smoke": True} | options), TINY)


def test_chosen_parts_alone_are_measured(tmp_path):
    assert run(tmp_path, parts=("ties",))["parts"].keys() == {"ties"}


def test_bytes_that_differ_are_a_failure_where_they_must_not(bench, monkeypatch):
    # The second run has another seed, and so other parameters and losses.
    train = Bench.train

    def of_another_seed(self, name, *args, **settings):
        return train(self, name, *args, seed=int(name == "same-2"), **settings)

    monkeypatch.setattr(Bench, "train", of_another_seed)
    found = accelerator_runs.check_determinism(bench)
    assert not found.numbers["same_log"] and not found.numbers["same_parameters"]
    assert found.numbers["distance"] > 0.1
    (failure,) = found.failures
    assert "bytes differ" in failure


def test_checkpoints_go_from_the_cpu_to_the_device_and_back(bench, monkeypatch):
    calls = []

    def record(self, name, dataset, device, *, epochs):
        calls.append((name, device.platform, epochs))
        share = sum(call[:2] == (name, "gpu") for call in calls) / 10
        return Run(share, {"map": {"mean": 0.5 + share}}, 0.0)

    bench.cpu, bench.device = device(platform="cpu"), device(platform="gpu")
    monkeypatch.setattr(Bench, "train", record)
    # A run's only parameter is 1, and .1 more for each of its calls on the GPU.
    monkeypatch.setattr(
        accelerator_runs, "_parameters", lambda run: {"weight": np.array([1 + run.folder])}
    )
    found = accelerator_runs.check_crossing(bench)
    assert calls == [
        ("crossing-0", "cpu", 4),
        ("crossing-1", "gpu", 4),
        ("crossing-2", "cpu", 2),
        ("crossing-2", "gpu", 4),
        ("crossing-3", "gpu", 2),
        ("crossing-3", "cpu", 4),
    ]
    assert list(found.numbers["distances"].values()) == pytest.approx([0, 0.1, 0.1, 0.1])
    assert [row[3] for row in found.tables[0].rows] == pytest.approx([0, 0.1, 0.1, 0.1])


def test_a_run_is_trained_on_the_device_that_is_named(bench, monkeypatch):
    seen = []

    def record(config, data, folder, placement):
        seen.append((placement.devices, jnp.zeros(1).devices()))
        return {}

    monkeypatch.setattr(accelerator_bench, "run_training", record)
    first, second = jax.devices()[:2]
    bench.train("one", bench.short_run)
    bench.train("other", bench.short_run, second)
    assert seen == [((first,), {first}), ((second,), {second})]


def test_distances_are_those_of_the_array_that_is_farthest_off():
    one = {"a": np.array([3.0, 4.0]), "b": np.array([1.0])}
    other = {"a": np.array([3.0, 4.5]), "b": np.array([1.05])}
    # ‖(0, .5)‖ / ‖(3, 4)‖ = .5 / 5 = .1, and .05 / 1 = .05
    assert accelerator_runs._distance(one, other) == pytest.approx(0.1)


def test_ties_that_are_broken_otherwise_are_seen(bench, monkeypatch):
    top_k = jax.lax.top_k

    def later_first(values, k):
        found, places = top_k(values[:, ::-1], k)
        return found, values.shape[1] - 1 - places

    monkeypatch.setattr(jax.lax, "top_k", later_first)
    found = accelerator_programs.check_ties(bench)
    assert found.numbers == {"by_index": False}
    assert {row[3] for row in found.tables[0].rows} == {"no"}


def test_a_ranking_that_is_wrong_is_a_failure(bench, monkeypatch):
    average_precision = accelerator_programs.aadml_jax.average_precision
    monkeypatch.setattr(
        accelerator_programs.aadml_jax,
        "average_precision",
        lambda scores, relevance, **kw: average_precision(-scores, relevance, **kw),
    )
    (failure,) = accelerator_programs.measure_evaluation(bench).failures
    assert "from that of NumPy" in failure


def test_a_cost_that_cannot_be_read_leaves_the_times(bench, monkeypatch):
    monkeypatch.setattr(accelerator_programs.hlo_text, "parse", lambda text: fail(bench))
    found = accelerator_programs.measure_losses(bench)
    assert found.failures == ["cost of contrastive: ValueError: it broke on two lines"]
    (row,) = found.tables[0].rows
    assert row[1] == pytest.approx(1e3 * found.numbers["seconds_per_step"]["contrastive"])
    assert row[-1] is None


def test_the_share_of_the_roofline_is_the_bound_by_the_measured_time(bench, monkeypatch):
    bench.device = device(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
    cost = accelerator_programs.hlo_text.Cost(launches=50)
    monkeypatch.setattr(accelerator_programs.hlo_text, "cost", lambda module, name: cost)
    (row,) = accelerator_programs.measure_losses(bench).tables[0].rows
    # 50 launches of 2 µs
    assert row[-3:-1] == (pytest.approx(0.1), "launches")
    assert row[-1] == pytest.approx(0.1 / row[1])


def test_a_loss_that_cannot_be_compiled_leaves_the_others(bench, monkeypatch):
    make = step_subjects.OurSteps

    def of_recipe(recipe, *args):
        if recipe.loss == "contrastive":
            raise RuntimeError("out of memory")
        return make(recipe, *args)

    monkeypatch.setattr(step_subjects, "OurSteps", of_recipe)
    bench.sizes = dataclasses.replace(TINY, losses=("contrastive", "proxy_anchor"))
    found = accelerator_programs.measure_losses(bench)
    assert found.failures == ["contrastive: RuntimeError: out of memory"]
    assert found.numbers["seconds_per_step"].keys() == {"proxy_anchor"}


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", None),
        ("cpu", None),
    ],
)
def test_peaks_are_those_of_the_device(bench, kind, peak):
    bench.device = device(device_kind=kind)
    found = bench.accelerator
    assert (None if found is None else found.bfloat16_flop) == peak


def test_memory_is_the_peak_of_the_device(bench):
    bench.device = device(memory_stats=lambda: {"peak_bytes_in_use": 3 * 2**20, "num_allocs": 7})
    found = accelerator_programs.read_memory(bench)
    assert found.answer == "at most 3.0 MiB"
    assert found.numbers["statistics"]["peak_bytes_in_use"] == 3 * 2**20


def test_a_machine_without_a_cpu_device_leaves_the_crossing_out(bench, monkeypatch):
    def no_cpu(platform):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "devices", no_cpu)
    with pytest.raises(NotRunError, match="unset JAX_PLATFORMS"):
        accelerator_runs.check_crossing(bench)


def test_the_full_sizes_are_those_of_the_published_run():
    assert FULL.has_published_run and not SMOKE.has_published_run
    assert FULL.eval_every == 10
    assert len(FULL.losses) == 12
