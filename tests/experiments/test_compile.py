"""`experiments.compile`: what it prints, writes and refuses."""

import json

import jax
import pytest
from compilers import topology_or_skip

from aadml_jax.errors import RunStopped, UserError
from aadml_jax.training.accelerators import ACCELERATORS, Topology
from aadml_jax.training.config import TrainConfig
from experiments import compile as binary

SMALL = {"smoke": True, "hidden_sizes": (8,), "batch_size": 20, "loss": "contrastive"}


def run(topology, *, json=None, train_rows=None, test_rows=None, **given):
    target = binary.TargetOptions(topology, train_rows, test_rows, json)
    given = SMALL | given
    return binary.run(binary.Options(target, TrainConfig.of(**given)), frozenset(given))


@pytest.fixture
def on_cpus(monkeypatch):
    """Lets a topology be some of the CPUs that are here, with figures of an accelerator."""

    def set_up(name="v5e", count=1, **figures):
        chip = ACCELERATORS[name]._replace(**figures)
        topology = Topology("cpu", tuple(jax.devices()[:count]), chip)
        monkeypatch.setattr(binary, "find_topology", lambda name: topology)

    return set_up


def test_the_numbers_are_printed_returned_and_written(on_cpus, tmp_path, capsys):
    on_cpus()
    numbers = run("cpu", json=str(tmp_path / "numbers.json"))
    written = json.loads((tmp_path / "numbers.json").read_text())
    assert written == json.loads(json.dumps(numbers))
    assert {
        "launches",
        "sorts",
        "inner_loops",
        "inner_loops_unknown_trips",
        "collectives",
        "scratch_bytes",
        "estimated_cycles",
        "fits",
    } <= written.keys()
    assert written["fits"] is True
    assert written["evaluation"].keys() >= {"launches", "scratch_bytes", "estimated_cycles"}
    assert (written["num_train"], written["num_test"]) == (300, 100)
    assert written["steps_per_epoch"] == 300 // 20
    printed = capsys.readouterr().out
    assert f"{written['launches']} launches" in printed
    assert "it fits" in printed
    assert "estimated" in printed
    assert "nothing is run" in printed


def test_rows_may_be_more_than_the_data_have(on_cpus):
    on_cpus(count=2)
    numbers = run("cpu", train_rows=4000, test_rows=1000, batch_size=400)
    assert numbers["steps_per_epoch"] == 4000 // 400
    assert numbers["train_bytes"] == 4000 // 2 * 4 * (128 + 1024 + 1)
    assert "all-reduce" in numbers["collectives"]


def test_cycles_are_of_tpus_alone(on_cpus):
    on_cpus("h100")
    assert run("cpu")["estimated_cycles"] is None


def test_what_does_not_fit_ends_with_status_1_and_its_numbers(on_cpus, tmp_path):
    on_cpus(memory_bytes=1000)
    path = tmp_path / "numbers.json"
    with pytest.raises(RunStopped, match=r"does not fit: .* of the 1,000 bytes of a device"):
        run("cpu", json=str(path))
    assert json.loads(path.read_text())["fits"] is False


def test_of_what_the_compiler_refuses_only_its_words_are_said(
    on_cpus, tmp_path, capsys, monkeypatch
):
    def refuse(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 20.1G of 15.7G hbm")

    on_cpus()
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    path = tmp_path / "numbers.json"
    with pytest.raises(RunStopped, match=r"does not fit: the compiler says .* 20\.1G of 15\.7G"):
        run("cpu", json=str(path))
    printed = capsys.readouterr().out
    assert "nothing is run" in printed
    assert "the run needs" not in printed and " at least" not in printed
    written = json.loads(path.read_text())
    assert written["refusal"] == "RESOURCE_EXHAUSTED: 20.1G of 15.7G hbm"
    assert not written["fits"]
    assert written["needed_bytes"] is written["estimated_run_seconds"] is None


@pytest.mark.parametrize(
    ("topology", "given", "said"),
    [
        (None, {}, "--topology is needed"),
        ("v3:2x2", {}, "--topology=v3:2x2 is not known; known are such as .*h100:1"),
        ("cpu", {"train_rows": 0}, "--train_rows=0 must be at least 1"),
        ("cpu", {"input": "stream", "dataset": "tfds:x"}, "--input=stream is not compiled"),
        ("cpu", {"batch_size": 301}, "--batch_size=301 exceeds the 300 training rows"),
        ("cpu", {"json": "/nonexistent/x.json"}, "--json=/nonexistent/x.json cannot be written"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(on_cpus, topology, given, said):
    if topology == "cpu":
        on_cpus()
    with pytest.raises(UserError, match=said):
        run(topology, **given)


@pytest.mark.aot
def test_a_run_is_compiled_for_an_accelerator():
    topology_or_skip("v5e:2x2")
    numbers = run("v5e:2x2")
    assert numbers["fits"]
    assert numbers["launches"] > 10
    assert numbers["estimated_cycles"] > 0
    assert numbers["collectives"]
