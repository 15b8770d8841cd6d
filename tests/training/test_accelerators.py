"""Names of topologies, and what is said where they are not known or cannot be compiled for."""

import importlib.util

import pytest
from compilers import topology_or_skip

from aadml_jax.errors import UserError
from aadml_jax.training.accelerators import ACCELERATORS, find_topology


@pytest.mark.parametrize(
    "name", ["", "v5e", "v5e:", "v5e:4", "v5e:4x", "v5e:0x4", "h100", "h100:0", "h100:2x2", "m4:8"]
)
def test_a_name_of_no_topology_is_refused_with_some_that_are(name):
    with pytest.raises(UserError, match=f"--topology={name} is not known.* v5e:4x4.*h100:1"):
        find_topology(name)


@pytest.mark.parametrize(
    ("name", "package"), [("v5e:4x4", "libtpu"), ("h100:8", "jax-cuda12-plugin")]
)
def test_a_compiler_that_is_not_installed_is_named_with_its_extra(monkeypatch, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refusal = rf"--topology={name} needs the package {package}; run pip install -e '\.\[aot\]'"
    with pytest.raises(UserError, match=refusal):
        find_topology(name)


def test_clock_rates_agree_with_the_peaks_of_the_matrix_units():
    # rows · columns · units of a chip, each a multiplication and an addition a cycle
    units = {"v4": 128**2 * 8, "v5e": 128**2 * 4, "v5p": 128**2 * 8, "v6e": 256**2 * 4}
    for name, count in units.items():
        chip = ACCELERATORS[name]
        assert chip.bfloat16_flop == pytest.approx(2 * count * chip.clock_rate, rel=0.01)


@pytest.mark.aot
@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v5e:16x16", 256, "TPU v5 lite"),
        ("v5p:2x2x1", 4, "TPU v5"),
        ("v6e:4x4", 16, "TPU v6 lite"),
        ("h100:1", 1, "NVIDIA H100 80GB HBM3"),
        ("h100:16", 16, "NVIDIA H100 80GB HBM3"),
        ("a100:8", 8, "NVIDIA A100-SXM4-80GB"),
    ],
)
def test_a_topology_has_the_devices_of_its_name(name, count, kind):
    topology = topology_or_skip(name)
    assert [device.device_kind for device in topology.devices] == [kind] * count
    assert topology.accelerator == ACCELERATORS[name.partition(":")[0]]


@pytest.mark.aot
def test_of_a_chip_with_two_devices_each_has_half():
    topology, chip = topology_or_skip("v4:2x2x1"), ACCELERATORS["v4"]
    assert len(topology.devices) == 2 * 4
    assert topology.accelerator.memory_bytes == chip.memory_bytes // 2
    assert topology.accelerator.bfloat16_flop == chip.bfloat16_flop / 2


@pytest.mark.aot
@pytest.mark.parametrize(
    ("name", "reason"), [("v5e:3x5", "cannot be compiled for"), ("h100:12", "such as h100:8")]
)
def test_a_layout_that_does_not_exist_is_one_line(name, reason):
    topology_or_skip("v5e:1x1"), topology_or_skip("h100:1")
    with pytest.raises(UserError, match=reason):
        find_topology(name)
