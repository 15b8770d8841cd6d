"""Counts in the text of compiled modules, written by hand and by XLA."""

import jax
import jax.numpy as jnp
import pytest

from aadml_jax.training.hlo_text import Traffic, cost, main_loop, parse

# A step of 3 launches (copy, fusion, sort), an inner loop of 5 turns with one launch in each, and
# one of unknown turns with two. Before the loop over the steps, one launch and a small loop.
STEPS = """HloModule jit_steps, is_scheduled=true, entry_computation_layout={(f32[4,8]{1,0})->f32[]}

%less (a: f32[], b: f32[]) -> pred[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

%product (p.1: f32[8,16], p.0: f32[4,8]) -> f32[4,16] {
  %p.1 = f32[8,16]{1,0} parameter(1)
  %p.0 = f32[4,8]{1,0} parameter(0)
  %d = f32[4,16]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = f32[4,16]{1,0} tanh(%d)
}

%add_one (q: f32[16]) -> f32[16] {
  %q = f32[16]{0} parameter(0)
  ROOT %n = f32[16]{0} negate(%q)
}

%turn (t: (s32[], f32[16])) -> (s32[], f32[16]) {
  %t.0 = (s32[], f32[16]{0}) parameter(0)
  %i.0 = s32[] get-tuple-element(%t.0), index=0
  %x.0 = f32[16]{0} get-tuple-element(%t.0), index=1
  %y.0 = f32[16]{0} fusion(%x.0), kind=kLoop, calls=%add_one
  ROOT %r.0 = (s32[], f32[16]{0}) tuple(%i.0, %y.0)
}

%search (t: (s32[], f32[16])) -> (s32[], f32[16]) {
  %t.1 = (s32[], f32[16]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %x.1 = f32[16]{0} get-tuple-element(%t.1), index=1
  %y.1 = f32[16]{0} fusion(%x.1), kind=kLoop, calls=%add_one
  %z.1 = f32[16]{0} copy(%y.1)
  ROOT %r.1 = (s32[], f32[16]{0}) tuple(%i.1, %z.1)
}

%step (s: (s32[], f32[4,8], f32[8,16], f32[16])) -> (s32[], f32[4,8], f32[8,16], f32[16]) {
  %s = (s32[], f32[4,8]{1,0}, f32[8,16]{1,0}, /*index=3*/f32[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %rows = f32[4,8]{1,0} get-tuple-element(%s), index=1
  %w = f32[8,16]{1,0} get-tuple-element(%s), index=2
  %v = f32[16]{0} get-tuple-element(%s), index=3
  %c = f32[4,8]{1,0} copy(%rows), metadata={op_name="jit(steps)/while/body/copy of \\"rows\\""}
  %f = f32[4,16]{1,0} fusion(%c, %w), kind=kCustom, calls=%product
  %sorted = f32[4,16]{1,0} sort(%f), dimensions={1}, to_apply=%less
  %init = (s32[], f32[16]{0}) tuple(%i, %v)
  %five = (s32[], f32[16]{0}) while(%init), condition=%less, body=%turn, KNOWN_5
  %some = (s32[], f32[16]{0}) while(%five), condition=%less, body=%search
  %u = f32[16]{0} get-tuple-element(%some), index=1
  ROOT %next = (s32[], f32[4,8]{1,0}, f32[8,16]{1,0}, f32[16]{0}) tuple(%i, %c, %w, %u)
}

ENTRY %main (x: f32[4,8], w: f32[8,16], v: f32[16]) -> f32[16] {
  %x = f32[4,8]{1,0} parameter(0)
  %w.0 = f32[8,16]{1,0} parameter(1)
  %v.0 = f32[16]{0} parameter(2)
  %zero = s32[] constant(0)
  %v.1 = f32[16]{0} fusion(%v.0), kind=kLoop, calls=%add_one
  %before = (s32[], f32[16]{0}) tuple(%zero, %v.1)
  %small = (s32[], f32[16]{0}) while(%before), condition=%less, body=%turn
  %all = (s32[], f32[4,8]{1,0}, f32[8,16]{1,0}, f32[16]{0}) tuple(%zero, %x, %w.0, %v.1)
  %loop = (s32[], f32[4,8], f32[8,16], f32[16]) while(%all), condition=%less, body=%step
  ROOT %out = f32[16]{0} get-tuple-element(%loop), index=3
}
""".replace("KNOWN_5", 'backend_config={"known_trip_count":{"n":"5"}}')


def module_of(*lines, before=""):
    """A module whose entry has these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    return parse(f"HloModule m\n{before}\nENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}\n")


def test_the_loop_over_the_steps_is_the_one_with_the_largest_body():
    assert main_loop(parse(STEPS)).name == "loop"


def test_a_step_is_what_the_body_of_that_loop_launches():
    module = parse(STEPS)
    step = cost(module, main_loop(module).called)
    # copy, fusion and sort; five turns of one launch; one turn of two
    assert step.launches == 3 + 5 * 1 + 2
    assert step.opcodes == {"copy": 1 + 1, "fusion": 1 + 5 + 1, "sort": 1}
    assert (step.sorts, step.inner_loops, step.inner_loops_unknown_trips) == (1, 2, 1)
    assert step.sources['jit(steps)/while/body/copy of \\"rows\\"'] == 1


def test_flop_and_bytes_of_a_step_follow_from_its_shapes():
    module = parse(STEPS)
    step = cost(module, main_loop(module).called)
    assert step.matrix_flop == 2 * 4 * 16 * 8
    assert step.other_flop == 4 * 16 + 5 * 16 + 16  # tanh, and a negation a turn
    # read and written, 4 bytes each: copy, product, sort, five turns, and a turn of two launches
    elements = (32 + 32) + (32 + 128 + 64) + (64 + 64) + 5 * (16 + 16) + 2 * (16 + 16)
    assert step.bytes == 4 * elements


def test_the_entry_has_what_is_before_and_within_the_loop():
    whole = cost(parse(STEPS))
    # one before, one turn of the small loop, one step
    assert whole.launches == 1 + 1 + 10
    assert whole.inner_loops == 1 + 1 + 2


def test_a_sort_within_a_fusion_and_one_of_a_library_are_sorts():
    fused = """
%sorting (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %s = f32[8]{0} sort(%p), dimensions={0}
}
"""
    module = module_of(
        "%x = f32[8]{0} parameter(0)",
        "%y = f32[8]{0} fusion(%x), kind=kCustom, calls=%sorting",
        '%z = f32[8]{0} custom-call(%y), custom_call_target="__cub$DeviceRadixSort"',
        'ROOT %k = f32[8]{0} custom-call(%z), custom_call_target="TopK"',
        before=fused,
    )
    assert cost(module).sorts == 2
    assert cost(module).launches == 3


def test_a_gather_reads_the_rows_that_it_takes():
    taking = """
%taking (q.1: s32[2], q.0: f32[1000,8]) -> f32[2,8] {
  %q.1 = s32[2]{0} parameter(1)
  %q.0 = f32[1000,8]{1,0} parameter(0)
  ROOT %g = f32[2,8]{1,0} gather(%q.0, %q.1), offset_dims={1}
}
"""
    module = module_of(
        "%x = f32[1000,8]{1,0} parameter(0)",
        "%i = s32[2]{0} parameter(1)",
        "ROOT %y = f32[2,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%taking",
        before=taking,
    )
    assert cost(module).bytes == 4 * (2 * 8 + 2 + 2 * 8)


def test_collectives_count_once_with_the_bytes_of_their_whole_arrays():
    module = module_of(
        "%x = f32[8]{0} parameter(0)",
        "%y = bf16[8]{0} convert(%x)",
        "%g = bf16[32]{0} all-gather(%y), dimensions={0}",
        "%h = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%y), dimensions={0}",
        "%i = bf16[32]{0} all-gather-done(%h)",
        "%r = (f32[8]{0}, f32[8]{0}) all-reduce-start(%x, %x), to_apply=%add",
        "%s = (f32[8]{0}, f32[8]{0}) all-reduce-done(%r)",
        "%u = ((f32[8]{0}), f32[8]{0}) all-reduce-start(%x), to_apply=%add",
        "%v = f32[8]{0} all-reduce-done(%u)",
        "%t = f32[2]{0} reduce-scatter(%x), dimensions={0}, to_apply=%add",
        "ROOT %z = f32[8]{0} copy(%x)",
    )
    assert cost(module).collectives == {
        "all-gather": Traffic(2, 2 * 32 * 2),
        "all-reduce": Traffic(2, 2 * 8 * 4 + 8 * 4),
        "reduce-scatter": Traffic(1, 8 * 4),
    }
    # the conversion, the five of them, and the copy
    assert cost(module).launches == 1 + 5 + 1


def counting(start="0", limit="7", step="1", direction="LT"):
    """A module with one loop, which launches a copy a turn, as it is compiled for a TPU."""
    computations = f"""
%more (p: (f32[8], s32[])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant({limit})
  %p = (f32[8]{{0}}, s32[]{{:T(128)}}) parameter(0)
  %n = s32[]{{:T(128)}} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{{:T(512)}} compare(%n, %limit), direction={direction}
}}

%once (q: (f32[8], s32[])) -> (f32[8], s32[]) {{
  %step = s32[]{{:T(128)}} constant({step})
  %q = (f32[8]{{0}}, s32[]{{:T(128)}}) parameter(0)
  %m = s32[]{{:T(128)}} get-tuple-element(%q), index=1
  %m.1 = s32[]{{:T(128)}} add(%m, %step)
  %y = f32[8]{{0}} get-tuple-element(%q), index=0
  %y.1 = f32[8]{{0}} copy(%y)
  ROOT %t = (f32[8]{{0}}, s32[]{{:T(128)}}) tuple(%y.1, %m.1)
}}
"""
    return module_of(
        "%x = f32[8]{0} parameter(0)",
        "%traced = s32[] get-tuple-element(%x), index=0",
        f"%zero = s32[]{{:T(128)}} {start if '(' in start else f'constant({start})'}",
        "%i = s32[]{:T(128)} bitcast(%zero)",
        "%init = (f32[8]{0}, s32[]{:T(128)}) tuple(%x, %i)",
        "%loop = (f32[8]{0}, s32[]{:T(128)}) while(%init), condition=%more, body=%once",
        "ROOT %out = f32[8]{0} get-tuple-element(%loop), index=0",
        before=computations,
    )


def test_turns_are_read_off_a_loop_that_counts_by_ones():
    counted = cost(counting())
    assert (counted.launches, counted.inner_loops_unknown_trips) == (7, 0)
    assert cost(counting(start="3")).launches == 7 - 3


@pytest.mark.parametrize(
    "other", [{"step": "2"}, {"direction": "NE"}, {"start": "bitcast(%traced)"}]
)
def test_turns_of_any_other_loop_are_unknown(other):
    assert cost(counting(**other)).inner_loops_unknown_trips == 1


def test_a_collective_beside_other_work_counts_where_it_starts():
    part = """
%NAME (p: f32[8]) -> f32[32] {
  %p.NAME = f32[8]{0} parameter(0)
  %g.NAME = f32[32]{0} all-gather(%p.NAME), dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c.NAME = f32[32]{0} custom-call(%g.NAME), custom_call_target="TARGET"
}
"""
    targets = {
        "begin": "AsyncCollectiveStart",
        "beside": "SomethingElse",
        "end": "AsyncCollectiveDone",
    }
    module = module_of(
        "%x = f32[8]{0} parameter(0)",
        *(f"%y.{n} = f32[32]{{0}} fusion(%x), kind=kCustom, calls=%{n}" for n in targets),
        "ROOT %z = f32[8]{0} copy(%x)",
        before="".join(
            part.replace("NAME", name).replace("TARGET", target) for name, target in targets.items()
        ),
    )
    assert cost(module).collectives == {"all-gather": Traffic(1, 32 * 4)}


def test_of_a_tpu_module_the_estimates_add_up_and_scalars_are_no_launches():
    module = module_of(
        "%x = f32[8,128]{1,0:T(8,128)} parameter(0)",
        "%k = f32[128,64]{1,0:T(8,128)} parameter(1)",
        "%n = s32[]{:T(128)S(6)} constant(3)",
        "%m = s32[]{:T(128)S(6)} add(%n, %n)",
        "%c = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]) copy-start(%x)",
        "%d = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%c)",
        "%p = f32[8,64]{1,0:T(8,128)S(1)} convolution(%d, %k), dim_labels=bf_io->bf, "
        'backend_config={"window_config":{"estimated_cycles":"1200"}}',
        "ROOT %y = f32[8,64]{1,0:T(8,128)} negate(%p), "
        'backend_config={"window_config":{"estimated_cycles":"34"}}',
    )
    total = cost(module)
    assert (total.launches, total.prefetches, total.estimated_cycles) == (2, 1, 1200 + 34)
    assert total.matrix_flop == 2 * 8 * 64 * 128
    # Memory space S(1) is on the chip: the transfer, the factor and the result are main memory's.
    assert total.bytes == 4 * (8 * 128 + 128 * 64 + 8 * 64)


def test_products_of_a_gpu_library_are_matrix_products():
    module = module_of(
        "%a = f32[4,8]{1,0} parameter(0)",
        "%b = f32[8,16]{1,0} parameter(1)",
        '%c = (f32[4,16]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}',
        "ROOT %d = f32[4,16]{1,0} get-tuple-element(%c), index=0",
    )
    assert cost(module).matrix_flop == 2 * 4 * 16 * 8


def test_a_fusion_beside_other_work_is_one_launch_with_what_is_in_it():
    adding = """
%adding (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} add(%p, %p)
}
"""
    module = module_of(
        "%x = f32[8]{0} parameter(0)",
        "%s = ((f32[8]{0}), f32[8]{0}) fusion-start(%x), kind=kLoop, calls=%adding",
        "ROOT %y = f32[8]{0} fusion-done(%s)",
        before=adding,
    )
    assert (cost(module).launches, cost(module).other_flop) == (1, 8)
    assert cost(module).bytes == 4 * (8 + 8)


def test_of_a_conditional_the_dearest_branch_counts_and_of_a_call_all():
    branches = """
%none (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}

%two (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %q.1 = f32[8]{0} copy(%q)
  ROOT %q.2 = f32[8]{0} copy(%q.1)
}
"""
    module = module_of(
        "%x = f32[8]{0} parameter(0)",
        "%i = s32[] constant(0)",
        "%y = f32[8]{0} conditional(%i, %x, %x), branch_computations={%none, %two}",
        "ROOT %z = f32[8]{0} call(%y), to_apply=%two",
        before=branches,
    )
    assert cost(module).launches == 2 + 2


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule m\n")


def test_a_module_of_xla_is_read():
    def steps(a, b, num_steps):
        def step(_, a):
            a = jnp.tanh(a @ b)
            return jax.lax.fori_loop(0, num_steps, lambda _, a: jnp.sort(a, axis=1) + 1, a)

        return jax.lax.fori_loop(0, num_steps, step, a)

    shapes = (
        jax.ShapeDtypeStruct((4, 8), jnp.float32),
        jax.ShapeDtypeStruct((8, 8), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    module = parse(jax.jit(steps).lower(*shapes).compile().as_text())
    step = cost(module, main_loop(module).called)
    assert step.matrix_flop == 2 * 4 * 8 * 8
    assert (step.sorts, step.inner_loops, step.inner_loops_unknown_trips) == (1, 1, 1)
