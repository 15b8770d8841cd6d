"""Accelerators that need not be there: what they can do, and their topologies for the compiler."""

import math
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from aadml_jax.errors import UserError, one_line, require_extra
from aadml_jax.training.parallel import Device

_GIB = 2**30


class Accelerator(NamedTuple):
    """What one chip can do at most, by its maker.

    Attributes:
      platform: `"tpu"` or `"cuda"`.
      bfloat16_flop: floating-point operations a second in matrix products of bfloat16.
      float32_flop: the same in products of float32 at JAX's default precision, which is one pass of
        bfloat16 on TPUs and TF32 on GPUs.
      memory_bytes: of main memory.
      memory_bandwidth: bytes a second.
      network_bandwidth: bytes a second to the other chips, in one direction.
      clock_rate: cycles a second of a TPU's cores; 0 of others.
    """

    platform: str
    bfloat16_flop: float
    float32_flop: float
    memory_bytes: int
    memory_bandwidth: float
    network_bandwidth: float
    clock_rate: float = 0


# TPUs: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of cloud.google.com/tpu/docs, with
# half of the bandwidth between chips, which is said for both directions. Their clock rates follow
# from peak = 2 · rows · columns · arrays · clock with 8 arrays of 128 × 128 (v4, v5p), 4 of them
# (v5e) and 4 of 256 × 256 (v6e). GPUs: NVIDIA's data sheets of the A100 80GB SXM and the H100 SXM,
# without sparsity.
ACCELERATORS: dict[str, Accelerator] = {
    "v4": Accelerator("tpu", 275e12, 275e12, 32 * _GIB, 1228e9, 150e9, 1.05e9),
    "v5e": Accelerator("tpu", 197e12, 197e12, 16 * _GIB, 819e9, 100e9, 1.5e9),
    "v5p": Accelerator("tpu", 459e12, 459e12, 95 * _GIB, 2765e9, 300e9, 1.75e9),
    "v6e": Accelerator("tpu", 918e12, 918e12, 32 * _GIB, 1640e9, 224e9, 1.75e9),
    "a100": Accelerator("cuda", 312e12, 156e12, 85_100_068_864, 2039e9, 300e9),
    "h100": Accelerator("cuda", 989e12, 495e12, 84_978_434_048, 3352e9, 450e9),
}
"""The accelerators that `find_topology` knows, by the first part of a topology's name."""

_EXAMPLES = "v4:2x2x1, v5e:4x4, v5p:2x2x1, v6e:4x4, a100:8, h100:1"
_GPUS_PER_HOST = 8

# The specifications of XLA, xla/backends/gpu/target_config/specs/{a100_sxm_80,h100_sxm}.txtpb.
_GPU_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory_per_core}
  threads_per_core_limit: 2048
  core_count: {core_count}
  fpus_per_core: {fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {memory_bandwidth}
  l2_cache_size: {l2_cache_size}
  clock_rate_ghz: {clock_rate_ghz}
  device_memory_size: {device_memory_size}
  shared_memory_per_block_optin: {shared_memory_per_block_optin}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
device_description_str: "{description}"
"""
_GPU_TARGETS = {
    "a100": {
        "shared_memory_per_core": 167936,
        "core_count": 108,
        "fpus_per_core": 64,
        "memory_bandwidth": 2039040000000,
        "l2_cache_size": 41943040,
        "clock_rate_ghz": 1.41,
        "device_memory_size": 85100068864,
        "shared_memory_per_block_optin": 166912,
        "major": 8,
        "description": "NVIDIA A100-SXM4-80GB",
    },
    "h100": {
        "shared_memory_per_core": 233472,
        "core_count": 132,
        "fpus_per_core": 128,
        "memory_bandwidth": 3352320000000,
        "l2_cache_size": 52428800,
        "clock_rate_ghz": 1.98,
        "device_memory_size": 84978434048,
        "shared_memory_per_block_optin": 232448,
        "major": 9,
        "description": "NVIDIA H100 80GB HBM3",
    },
}


# So that the TPU's library neither asks a server of the cloud what this machine is nor complains
# that it is none, and may be loaded by several processes. What it compiles does not depend on them.
_WITHOUT_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: such as "v5e:4x4".
      devices: for a `Placement`; no array can be put on them.
      accelerator: what one of the devices can do; of a chip with two devices, the half.
    """

    name: str
    devices: tuple[Device, ...]
    accelerator: Accelerator


def find_topology(name: str) -> Topology:
    """The topology of a name: an accelerator of `ACCELERATORS` and its layout or number.

    Args:
      name: such as "v5e:4x4", or "h100:8"; GPUs beyond eight are in hosts of eight.

    Raises:
      UserError: if the name is not known, if the compiler knows no such layout, or if the package
        with the compiler is not installed.
    """
    kind, _, layout = name.partition(":")
    sizes = [int(size) for size in layout.split("x") if size.isdecimal()]
    is_gpu = kind in _GPU_TARGETS
    pattern = r"[1-9]\d*" if is_gpu else r"[1-9]\d*(x[1-9]\d*){1,2}"
    if kind not in ACCELERATORS or not re.fullmatch(pattern, layout):
        raise UserError(f"--topology={name} is not known; known are such as {_EXAMPLES}")
    accelerator = ACCELERATORS[kind]
    require_compiler(accelerator.platform, name)
    if is_gpu:
        (count,) = sizes
        per_host = min(count, _GPUS_PER_HOST)
        if count % per_host:
            raise UserError(
                f"--topology={name}: beyond {_GPUS_PER_HOST} GPUs there must be whole hosts of "
                f"{_GPUS_PER_HOST}, such as {kind}:{count // _GPUS_PER_HOST * _GPUS_PER_HOST}"
            )
        options = {
            "topology": f"1x{count // per_host}x{per_host}",
            "target_config": _GPU_TARGET.format(**_GPU_TARGETS[kind]),
        }
        topology_name = ""
    else:
        options, topology_name = {}, name
        for variable, value in _WITHOUT_TPU.items():
            os.environ.setdefault(variable, value)
    try:
        description = topologies.get_topology_desc(
            platform=accelerator.platform, topology_name=topology_name, **options
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"--topology={name} cannot be compiled for ({one_line(error)}); known are such as "
            f"{_EXAMPLES}"
        ) from error
    devices = tuple(sorted(description.devices, key=lambda one: (one.process_index, one.id)))
    # Of a TPU whose two cores are devices of their own, a device has half.
    per_chip = 1 if is_gpu else len(devices) // math.prod(sizes)
    return Topology(name, devices, _part_of(accelerator, per_chip))


def _part_of(chip: Accelerator, count: int) -> Accelerator:
    return chip._replace(
        bfloat16_flop=chip.bfloat16_flop / count,
        float32_flop=chip.float32_flop / count,
        memory_bytes=chip.memory_bytes // count,
        memory_bandwidth=chip.memory_bandwidth / count,
        network_bandwidth=chip.network_bandwidth / count,
    )


_COMPILERS = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}


def require_compiler(platform: str, name: str) -> None:
    """Checks that the package is there that compiles for a platform.

    Args:
      platform: `"tpu"` or `"cuda"`.
      name: of the topology that needs it.

    Raises:
      UserError: if not.
    """
    module = _COMPILERS[platform]
    require_extra(
        module,
        f"--topology={name} needs the package {module.replace('_', '-')}; run pip install -e "
        "'.[aot]'",
    )


def compile_on_host() -> None:
    """Lets JAX compile for devices that are not there; to be called before it looks for any.

    Devices that are there stay unused, so that a machine whose own are busy can compile, too.
    """
    # JAX would not load the plugin without the CUDA libraries, which compiling does not need.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.config.update("jax_platforms", "cpu")
