"""What a compiled module's text says of its cost: launches, loops, collectives, FLOP, bytes.

XLA prints a compiled module (`compiled.as_text()`) in the order in which its instructions run. At
the top level of a computation each instruction is work of its own, a kernel on a GPU and an
operation on a TPU; what stands in the computation of a fusion is part of the fusion. For example,

    %body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
      %p = (s32[], f32[8]{0}) parameter(0)
      %i = s32[] get-tuple-element(%p), index=0
      %x = f32[8]{0} get-tuple-element(%p), index=1
      %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
      ROOT %next = (s32[], f32[8]{0}) tuple(%i, %y)
    }

is one launch, which reads 32 bytes and writes 32.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# They name, group or reinterpret what is there.
_FREE = frozenset(
    {
        "add-dependency",
        "after-all",
        "bitcast",
        "constant",
        "domain",
        "get-tuple-element",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
    }
)
_FREE_TARGETS = (
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
    "Sharding",
)
# Transfers that a TPU's own engine makes beside the computation.
_PREFETCHES = frozenset({"copy-start", "slice-start", "dynamic-slice-start"})
_MOVES = frozenset(
    {
        "broadcast",
        "concatenate",
        "copy",
        "dynamic-slice",
        "dynamic-update-slice",
        "gather",
        "iota",
        "pad",
        "reshape",
        "reverse",
        "select",
        "slice",
        "transpose",
    }
)
_SLICES = frozenset({"dynamic-slice", "gather", "slice"})
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]+m[0-9]+\w*)?)\[([0-9,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:body|calls|to_apply|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CHAIN = "chain_id="
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_INDEX = re.compile(r"index=(\d+)")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=|ensions":)[{\[]([^}\]]*)')
_SOURCE = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass(frozen=True)
class _ArrayShape:
    """An array's type: dtype, sizes, and whether it lies in the device's main memory."""

    dtype: str
    sizes: tuple[int, ...]
    is_in_main_memory: bool

    @property
    def num_elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def num_bytes(self) -> int:
        if self.dtype in ("token", "opaque"):
            return 0
        bits = 8 if self.dtype == "pred" else int(re.findall(r"\d+", self.dtype)[0])
        return -(-self.num_elements * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its module.
      opcode: such as "fusion".
      shapes: the arrays of the result, those of a tuple in order.
      operands: names of the instructions whose results it takes; of a parameter its number, of a
        constant its whole number.
      attributes: the text behind the operands.
      is_root: whether its result is that of its computation.
    """

    name: str
    opcode: str
    shapes: tuple[_ArrayShape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    @property
    def called(self) -> str | None:
        """The computation of a fusion or call, or a loop's body."""
        found = _CALLED.search(self.attributes)
        return None if found is None else found[1]

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        if found := _BRANCHES.search(self.attributes):
            return tuple(name.strip().lstrip("%") for name in found[1].split(","))
        return tuple(_CALLED.findall(self.attributes))

    @property
    def source(self) -> str:
        """Where the program says what became this, such as "jit(step)/while/body/add"."""
        found = _SOURCE.search(self.attributes)
        return "" if found is None else found[1]

    @property
    def target(self) -> str | None:
        """What a custom call calls."""
        found = _TARGET.search(self.attributes) if self.opcode == "custom-call" else None
        return None if found is None else found[1]

    @property
    def is_fusion(self) -> bool:
        """Whether a computation of its own says what it does, beside other work or not."""
        return self.opcode in ("fusion", "fusion-start", "async-start")

    @property
    def is_sort(self) -> bool:
        """Whether it sorts, in XLA's words or by a library."""
        return self.opcode == "sort" or "Sort" in (self.target or "")

    @property
    def collective(self) -> str | None:
        """Its kind in `COLLECTIVES`; of two asynchronous halves the first alone has one."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None


@dataclasses.dataclass(frozen=True)
class Module:
    """A module's computations by name, each a tuple of instructions in the order of their run."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    @functools.cached_property
    def instructions(self) -> Mapping[str, Instruction]:
        """All instructions by name."""
        return {one.name: one for lines in self.computations.values() for one in lines}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """How many collectives of a kind there are, and the bytes of their arrays on one device."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.count + other.count, self.bytes + other.bytes)

    def __mul__(self, turns: int) -> "Traffic":
        return Traffic(self.count * turns, self.bytes * turns)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run of a computation takes on one device.

    Inner loops count as often as they turn; those of an unknown trip count as if they turned once,
    so that everything is then a lower bound.

    Attributes:
      launches: kernels of a GPU; on a TPU operations, those of single numbers left out.
      opcodes: the launches by opcode.
      sources: the launches by the operation that they come from, see `Instruction.source`.
      sorts: launches that sort, the sorts within fusions included.
      inner_loops: loops, each counted once.
      inner_loops_unknown_trips: those of them whose number of turns the compiler does not know.
      prefetches: asynchronous transfers between the memories of a TPU.
      collectives: by kind.
      matrix_flop: of matrix products, 2 a multiplication and addition.
      other_flop: of everything else, 1 an element that an arithmetic instruction makes.
      bytes: read and written in main memory by launches; of what a fusion only slices, the slice.
      estimated_cycles: the sum of the compiler's estimates; 0 where it gives none.
    """

    launches: int = 0
    opcodes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sorts: int = 0
    inner_loops: int = 0
    inner_loops_unknown_trips: int = 0
    prefetches: int = 0
    collectives: Mapping[str, Traffic] = dataclasses.field(default_factory=dict)
    matrix_flop: int = 0
    other_flop: int = 0
    bytes: int = 0
    estimated_cycles: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            **{
                field.name: _sum(getattr(self, field.name), getattr(other, field.name))
                for field in dataclasses.fields(Cost)
            }
        )

    def turned(self, turns: int) -> "Cost":
        """The cost of a loop's turns; the loops within its body are not multiplied."""
        return Cost(
            **{
                field.name: value if field.name.startswith("inner_loops") else _times(value, turns)
                for field in dataclasses.fields(Cost)
                for value in [getattr(self, field.name)]
            }
        )


def _sum(one: Any, other: Any) -> Any:
    if not isinstance(one, Mapping):
        return one + other
    return {
        key: one[key] + other[key] if key in one and key in other else one.get(key, other.get(key))
        for key in {**one, **other}
    }


def _times(value: Any, turns: int) -> Any:
    if isinstance(value, Mapping):
        return {key: part * turns for key, part in value.items()}
    return value * turns


def parse(text: str) -> Module:
    """The module of a text.

    Raises:
      ValueError: if it holds no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, lines = None, None, []
    for line in text.splitlines():
        if name is None:
            if header := _HEADER.match(line):
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = tuple(lines)
            name = None
        elif " = " in line:
            lines.append(_instruction(line))
    if entry is None:
        raise ValueError(f"no ENTRY in a text of {len(text)} characters that begins {text[:60]!r}")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    line = line.strip()
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _end_of_parentheses(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = rest[: rest.index("(")]
    rest = rest[len(opcode) :]
    end = _end_of_parentheses(rest)
    pattern = r"^\((-?\d+)\)$" if opcode in ("parameter", "constant") else r"%([\w.\-]+)"
    operands = re.findall(pattern, rest[:end])
    return Instruction(
        name.lstrip("%"),
        opcode,
        _shapes(shape),
        tuple(operands),
        rest[end:],
        is_root=line.startswith("ROOT "),
    )


def _end_of_parentheses(text: str) -> int:
    """The place behind the parenthesis that closes the first one."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _shapes(text: str) -> tuple[_ArrayShape, ...]:
    return tuple(
        _ArrayShape(
            dtype,
            tuple(int(size) for size in sizes.split(",") if size),
            # A TPU's other memory spaces, such as S(1), are on the chip.
            "S(" not in layout,
        )
        for dtype, sizes, layout in _ARRAY.findall(text)
    )


def main_loop(module: Module) -> Instruction | None:
    """The loop with the most instructions in its body, of those that no other loop turns."""
    loops = [one for one in _outside_loops(module, module.entry) if one.opcode == "while"]
    return max(loops, key=lambda loop: _size(module, loop.called), default=None)


def _outside_loops(module: Module, name: str) -> Iterator[Instruction]:
    for one in module.computations[name]:
        yield one
        if one.opcode == "call" and one.called is not None:
            yield from _outside_loops(module, one.called)


def _size(module: Module, name: str | None) -> int:
    if name is None:
        return 0
    lines = module.computations[name]
    return len(lines) + sum(
        _size(module, one.called) for one in lines if one.opcode in ("while", "call")
    )


def cost(module: Module, name: str | None = None) -> Cost:
    """What one run of a computation takes, with all that it calls.

    Args:
      module: from `parse`.
      name: of the computation; default the module's entry.
    """
    total = Cost()
    for one in module.computations[name or module.entry]:
        total = total + _cost_of(module, one)
    return total


def _cost_of(module: Module, one: Instruction) -> Cost:
    if one.opcode == "while" and one.called is not None:
        trips = _trips(module, one)
        loop = Cost(inner_loops=1, inner_loops_unknown_trips=int(trips is None))
        return loop + cost(module, one.called).turned(1 if trips is None else trips)
    if one.opcode == "call" and one.called is not None:
        return cost(module, one.called)
    if one.opcode == "conditional":
        branches = [cost(module, branch) for branch in one.branches]
        return max(branches, key=lambda branch: branch.launches, default=Cost())
    if one.opcode in _PREFETCHES:
        # The result holds destination and source, and last the context of the transfer.
        moved = min((shape.num_bytes for shape in one.shapes[:-1]), default=0)
        return Cost(prefetches=1, bytes=moved)
    if _is_free(one):
        return Cost()
    parts = [one, *_inside(module, one)] if one.is_fusion else [one]
    cycles = _CYCLES.search(one.attributes)
    collectives = {
        part.collective: Traffic(1, _payload(module, part)) for part in parts if part.collective
    }
    # A TPU writes a collective that goes on beside other work into every fusion of that work.
    if any(_CHAIN in part.attributes for part in parts[1:]) and not any(
        part.target == "AsyncCollectiveStart" for part in parts
    ):
        collectives = {}
    return Cost(
        launches=1,
        opcodes={one.opcode: 1},
        sources={one.source: 1},
        sorts=int(any(part.is_sort for part in parts)),
        collectives=collectives,
        matrix_flop=sum(_matrix_flop(module, part) for part in parts),
        other_flop=sum(_other_flop(module, part) for part in parts),
        bytes=_bytes(module, one),
        estimated_cycles=0 if cycles is None else int(cycles[1]),
    )


def _trips(module: Module, loop: Instruction) -> int | None:
    """How often a loop turns, None if that is not known.

    For GPUs the compiler says it. For TPUs it is read off a loop that counts by ones between
    constants.
    """
    if said := _TRIPS.search(loop.attributes):
        return int(said[1])
    condition = _CONDITION.search(loop.attributes)
    test = None if condition is None else _root(module, condition[1])
    start, after = module.instructions[loop.operands[0]], _root(module, loop.called)
    if test is None or test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = (module.instructions[name] for name in test.operands)
    place = _INDEX.search(counter.attributes)
    if place is None or after is None or {start.opcode, after.opcode} != {"tuple"}:
        return None
    first = _constant(module, start.operands[int(place[1])])
    step = module.instructions[after.operands[int(place[1])]]
    last = _constant(module, limit.name)
    is_count = step.opcode == "add" and 1 in [_constant(module, name) for name in step.operands]
    return max(0, last - first) if is_count and first is not None and last is not None else None


def _root(module: Module, name: str | None) -> Instruction | None:
    """The instruction whose result is that of a computation."""
    return next((one for one in module.computations.get(name or "", ()) if one.is_root), None)


def _constant(module: Module, name: str) -> int | None:
    """The whole number that an instruction holds, copied or not; None if it is no constant."""
    one = module.instructions[name]
    while one.opcode in ("copy", "bitcast"):
        one = module.instructions[one.operands[0]]
    return int(one.operands[0]) if one.opcode == "constant" and one.operands else None


def _is_free(one: Instruction) -> bool:
    if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
        return True
    if one.opcode == "custom-call":
        return one.target in _FREE_TARGETS
    if (
        one.is_fusion
        or one.opcode in ("copy", "sort")
        or one.opcode.endswith("-start")
        or one.collective
    ):
        return False
    # A TPU computes single numbers on its scalar unit. On a GPU they are always within fusions.
    return all(shape.num_elements <= 1 for shape in one.shapes)


def _inside(module: Module, one: Instruction) -> Iterator[Instruction]:
    """The instructions of a fusion's computation, and of the fusions in it."""
    for part in module.computations.get(one.called or "", ()):
        yield part
        if part.opcode in ("fusion", "call"):
            yield from _inside(module, part)


def _operand_shapes(module: Module, one: Instruction) -> list[tuple[_ArrayShape, ...]]:
    return [module.instructions[name].shapes for name in one.operands]


def _result(module: Module, one: Instruction) -> tuple[_ArrayShape, ...]:
    """The arrays that an instruction makes: the first half of a transfer repeats its operands.

    all-gather-start(f32[8]) is of the type ((f32[8]), f32[32]), but all-reduce-start(f32[8]) may be
    of the type f32[8], too.
    """
    count = sum(map(len, _operand_shapes(module, one)))
    is_repeated = one.opcode.endswith("-start") and len(one.shapes) >= 2 * count
    return one.shapes[count:] if is_repeated else one.shapes


def _payload(module: Module, one: Instruction) -> int:
    """The bytes of a collective's arrays on one device where they are whole."""
    operands = (shape for shapes in _operand_shapes(module, one) for shape in shapes)
    return max(
        sum(shape.num_bytes for shape in operands),
        sum(shape.num_bytes for shape in _result(module, one)),
    )


def _bytes(module: Module, one: Instruction) -> int:
    """Bytes of main memory that a launch reads and writes."""
    fused = module.computations.get(one.called or "", ()) if one.is_fusion else (one,)
    users: dict[str, list[Instruction]] = {}
    for part in fused:
        for name in part.operands:
            users.setdefault(name, []).append(part)
    parameters = {int(part.operands[0]): part.name for part in fused if part.opcode == "parameter"}
    made = _result(module, one)
    total = sum(shape.num_bytes for shape in made if shape.is_in_main_memory)
    for place, operand in enumerate(one.operands):
        name, shapes = parameters.get(place, operand), module.instructions[operand].shapes
        taken = sum(shape.num_bytes for shape in shapes if shape.is_in_main_memory)
        takers = users.get(name, [])
        if takers and all(
            user.opcode in _SLICES and user.operands.index(name) == 0 for user in takers
        ):
            slices = sum(shape.num_bytes for user in takers for shape in user.shapes)
            taken = min(taken, slices)
        total += taken
    return total


def _matrix_flop(module: Module, one: Instruction) -> int:
    """2 · elements of the result · length of the sums, of a product in any of its forms."""
    is_product = one.opcode in ("dot", "convolution") or "__cublas$" in (one.target or "")
    if not is_product:
        return 0
    (left, *_), (right, *_) = _operand_shapes(module, one)[:2]
    length = 1
    if one.opcode == "convolution":
        length = _kernel_size(right, one.attributes)
    elif contracted := _CONTRACTED.search(one.attributes):
        axes = re.findall(r"\d+", contracted[1])
        length = math.prod(left.sizes[int(axis)] for axis in axes)
    return 2 * one.shapes[0].num_elements * length


def _kernel_size(kernel: _ArrayShape, attributes: str) -> int:
    """Over how many products a convolution sums, which a TPU makes of matrix products."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", attributes)
    if labels is None:
        return 0
    # A dilated window is how a batch of products is written: each meets its own factor alone.
    skipped = "o" if "lhs_dilate" not in attributes else "o0123456789"
    sizes = zip(labels[1], kernel.sizes, strict=False)
    return math.prod(size for label, size in sizes if label not in skipped)


def _other_flop(module: Module, one: Instruction) -> int:
    if (
        one.opcode in _FREE | _MOVES | {"dot", "convolution", "custom-call", "sort"}
        or one.is_fusion
        or one.collective
        or one.opcode.endswith(("-start", "-done"))
    ):
        return 0
    shapes = one.shapes
    if one.opcode in ("reduce", "reduce-window"):
        shapes = next(iter(_operand_shapes(module, one)), shapes)
    return sum(shape.num_elements for shape in shapes)
