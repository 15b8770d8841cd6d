"""Speed and memory of the losses: value and gradient by the embeddings of both modalities.

    python -m benchmarks.loss_speed
    python -m benchmarks.loss_speed --losses=triplet --batch_sizes=8192,16384
    python -m benchmarks.loss_speed --memory

Each call takes audio and visual embeddings of ten dimensions in ten classes and returns the sum of
both directions, as in training, and its derivative by both. Ours runs whole up to a batch of 4,096
and in blocks of 1,024 anchors above; so does the plain PyTorch code. Before its first measurement
each peer's value and gradient are compared with ours on 64 rows, and its value at the size of the
table again: the largest relative difference is the column "off by".

--memory compiles only: it prints XLA's scratch memory of the triplet loss from embeddings.
"""

import functools
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from aadml_jax.errors import UserError
from benchmarks import our_losses, side_by_side
from experiments import command_line

side_by_side.define_flags(rounds=9)
flags.adopt_module_key_flags(side_by_side)  # so that --help lists them
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["256", "400", "1024", "2048", "4096", "8192", "16384"], "rows, ascending"
)
_LOSSES = flags.DEFINE_list(
    "losses",
    [
        "triplet",
        "contrastive",
        "multi_similarity",
        "ntxent",
        "supcon",
        "circle",
        "lifted_structure",
        "margin",
        "smooth_ap",
    ],
    f"losses to measure: {', '.join(our_losses.NAMES)}",
)
_OTHERS_UP_TO = flags.DEFINE_integer(
    "others_up_to", 4096, "largest batch of the losses other than triplet"
)
_SMOOTH_AP_UP_TO = flags.DEFINE_integer(
    "smooth_ap_up_to", 1024, "largest batch of smooth_ap, which takes O(batch³) time"
)
_BLOCK_SIZE = flags.DEFINE_integer(
    "block_size", 1024, "anchors per block for batches above --whole_up_to", lower_bound=1
)
_WHOLE_UP_TO = flags.DEFINE_integer("whole_up_to", 4096, "largest batch that is not cut in blocks")
_MEMORY = flags.DEFINE_bool("memory", False, "print the scratch memory of the triplet loss only")

_DIMENSIONS = _CLASSES = 10
_CHECK_ROWS = 64
_TOLERANCE = 1e-5
# (batch, dimensions, goal in MiB) of --memory.
_MEMORY_GOALS = ((16_384, 16, 512), (1_024, 256, 64))


def make_batch(batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random embeddings of both modalities, float32, and labels."""
    rng = np.random.default_rng(0)
    sides = rng.standard_normal((2, batch_size, _DIMENSIONS)).astype(np.float32)
    return *sides, rng.integers(0, _CLASSES, batch_size, dtype=np.int32)


def _relative(value: np.ndarray, reference: np.ndarray) -> float:
    scale = np.linalg.norm(reference)
    return float(np.linalg.norm(np.asarray(value) - reference) / (scale or 1))


@functools.cache
def _off_on_few_rows(name: str, place: int) -> float:
    """Largest relative difference of a peer's value and gradient to ours."""
    from benchmarks import torch_peers

    peer = torch_peers.LOSSES[name][place]
    batch = make_batch(_CHECK_ROWS)
    theirs = torch_peers.value_and_gradient(peer, *_tensors(batch))
    value, gradients = our_losses.value_and_gradient(
        our_losses.both_directions(name, reduction=peer.reduction)
    )(*batch)
    ours = (value, *gradients)
    return max(
        _relative(mine.numpy(), np.asarray(ref)) for mine, ref in zip(theirs, ours, strict=True)
    )


def _tensors(batch: tuple[np.ndarray, ...]) -> tuple:
    import torch

    return tuple(map(torch.from_numpy, (*batch[:2], batch[2].astype(np.int64))))


def our_subject(name: str, batch_size: int) -> tuple[side_by_side.Subject, dict[str, str]]:
    """What is measured of this library; the dictionary gets the memory once it is compiled."""
    block_size = _BLOCK_SIZE.value if batch_size > _WHOLE_UP_TO.value else None
    cells: dict[str, str] = {}

    def prepare() -> Callable[[], object]:
        batch = tuple(map(jnp.asarray, make_batch(batch_size)))
        function = our_losses.value_and_gradient(
            our_losses.both_directions(name, block_size=block_size)
        )
        compiled = function.lower(*batch).compile()
        scratch = compiled.memory_analysis().temp_size_in_bytes
        cells["memory"] = side_by_side.format_bytes(scratch)
        if scratch > flags.FLAGS.memory_limit_gib * 2**30:
            raise side_by_side.NotRunError(f"needs {cells['memory']}, above --memory_limit_gib")
        return lambda: jax.block_until_ready(compiled(*batch))

    note = f"in blocks of {block_size}" if block_size else ""
    # What is compiled is compiled in `prepare`; the first call is like any other.
    return side_by_side.Subject("aadml_jax", prepare, note=note), cells


def peer_subject(
    peers: types.ModuleType, name: str, place: int, batch_size: int
) -> tuple[side_by_side.Subject, dict[str, str]]:
    """What is measured of another library's loss, and its memory by arithmetic."""
    peer = peers.LOSSES[name][place]
    batch = make_batch(batch_size)
    cuts = batch_size > _WHOLE_UP_TO.value and peer.in_blocks
    block_size = _BLOCK_SIZE.value if cuts else batch_size
    needs = peer.bytes_built(np.bincount(batch[2], minlength=_CLASSES)) * block_size / batch_size

    def prepare() -> Callable[[], object]:
        if peer.function is None:
            raise side_by_side.NotRunError(peer.note)
        _off_on_few_rows(name, place)
        tensors = _tensors(batch)
        return lambda: peers.value_and_gradient(peer, *tensors, block_size=block_size)

    notes = [peer.note] if peer.note else []
    if cuts:
        notes.append(f"in blocks of {block_size}")
    subject = side_by_side.Subject(peer.name, prepare, needs_bytes=needs, note="; ".join(notes))
    return subject, {"memory": f"({side_by_side.format_bytes(needs)})" if needs else "–"}


def _agreement(
    peers: types.ModuleType, name: str, place: int, result: side_by_side.Result, ours: object
) -> str:
    if result.reason:
        return "–"
    off = _off_on_few_rows(name, place)
    if ours is not None and peers.LOSSES[name][place].reduction == "anchors":
        value = float(np.asarray(ours[0]))
        off = max(off, abs(float(result.first_output[0]) - value) / abs(value))
    return f"{off:.0e}" if off <= _TOLERANCE else f"{off:.0e} DISAGREES"


def _measure(
    name: str, batch_size: int, peers: types.ModuleType | None, table: side_by_side.Table
) -> None:
    entries = [our_subject(name, batch_size)]
    if peers:
        entries += [
            peer_subject(peers, name, place, batch_size)
            for place in range(len(peers.LOSSES.get(name, ())))
        ]
    results = side_by_side.measure([subject for subject, _ in entries])
    ours = results[0]
    for number, (result, (subject, cells)) in enumerate(zip(results, entries, strict=True)):
        off = _agreement(peers, name, number - 1, result, ours.first_output) if number else "–"
        factor = "–"
        if not result.reason and not ours.reason:
            factor = f"{result.wall / ours.wall:.2f}"
        table.row(
            name,
            f"{batch_size:,}",
            subject.name,
            *result.cells(digits=2),
            factor,
            cells.get("memory", "–"),
            off,
            result.remark,
        )


def print_memory() -> None:
    """The scratch of value and gradient of the triplet loss, from embeddings, in blocks."""
    table = side_by_side.Table(
        ("batch", 6),
        ("dimensions", 10),
        ("block", 5),
        ("directions", 10),
        ("scratch", 10),
        ("goal", 8),
    )
    for batch_size, dimensions, goal in _MEMORY_GOALS:
        shape = jax.ShapeDtypeStruct((batch_size, dimensions), jnp.float32)
        labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        for block_size in sorted({256, min(_BLOCK_SIZE.value, batch_size)}):
            for directions, make in (
                ("one", our_losses.one_direction),
                ("both", our_losses.both_directions),
            ):
                loss = make("triplet", block_size=block_size)
                compiled = our_losses.value_and_gradient(loss).lower(shape, shape, labels).compile()
                table.row(
                    f"{batch_size:,}",
                    str(dimensions),
                    f"{block_size:,}",
                    directions,
                    side_by_side.format_bytes(compiled.memory_analysis().temp_size_in_bytes),
                    f"≤ {goal} MiB",
                )


def main() -> None:
    """Measures and prints."""
    for name in _LOSSES.value:
        if name not in our_losses.NAMES:
            raise UserError(f"--losses={name} must be among {', '.join(our_losses.NAMES)}")
    try:
        batch_sizes = sorted(int(size) for size in _BATCH_SIZES.value)
    except ValueError:
        batch_sizes = []
    if not batch_sizes or batch_sizes[0] < 1:
        raise UserError(f"--batch_sizes={','.join(_BATCH_SIZES.value)} must be whole numbers")
    peers = None if _MEMORY.value else side_by_side.load_peers("torch_peers")
    with side_by_side.session(peers):
        if _MEMORY.value:
            print_memory()
            return
        print(
            f"\nValue and gradient, both directions, float32, {_DIMENSIONS} dimensions, {_CLASSES} "
            "classes. Memory: XLA's\nscratch for ours; in parentheses, what the peer builds in one "
            "direction, by arithmetic."
        )
        table = side_by_side.Table(
            ("loss", -16),
            ("batch", 6),
            ("library", -25),
            ("ms: median (min–max)", 26),
            ("CPU ms", 10),
            ("rounds", 6),
            ("× ours", 7),
            ("memory", 12),
            ("off by", 6),
            ("note", -1),
        )
        for name in _LOSSES.value:
            largest = batch_sizes[-1] if name == "triplet" else _OTHERS_UP_TO.value
            if name == "smooth_ap":
                largest = min(largest, _SMOOTH_AP_UP_TO.value)
            for batch_size in batch_sizes:
                if batch_size <= largest:
                    _measure(name, batch_size, peers, table)


if __name__ == "__main__":
    command_line.run(main)
