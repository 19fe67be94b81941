"""Bytes by hand, of a small compiled program and of typical pieces of one."""

# ruff: noqa: E501 - A compiler's lines are long.

import pathlib
import textwrap

import pytest

from qed.planning import traffic
from qed.planning.traffic import Collective

# y = x w_i for i < 5, x bf16 [65536, 2048] over four chips, w float32
# [5, 2048, 2048] with its columns over them; the sum of every product.
MATMULS = pathlib.Path(__file__).parent / 'matmuls_v5e_2x2.hlo'


@pytest.fixture(scope='module')
def matmuls():
  return traffic.read(MATMULS.read_text(), longest_ring=2)


def test_each_product_reads_and_writes_its_shard_of_x(matmuls):
  # The weights are converted into VMEM once, where they stay, and the matmul
  # finds all that it needs there.
  x = 65_536 * 2_048 * 2 / 4
  weights = 5 * 2_048 * 2_048 * 4 / 4
  scalars = 128  # Counters and sums; see the text.
  assert matmuls.hbm_bytes == weights + 5 * 2 * x + scalars


def test_weights_are_gathered_once_per_product(matmuls):
  gather = Collective(
    'all-gather', 4, 'jit(f)/while/body/closed_call/convert_element_type'
  )
  # Each chip passes on three quarters of a bfloat16 matrix.
  assert matmuls.collectives[gather] == 5 * 2_048 * 2_048 * 2 * 3 / 4


def test_the_five_sums_are_reduced_once(matmuls):
  total = Collective(
    'all-reduce', 4, 'jit(f)/while/body/closed_call/reduce_sum'
  )
  assert matmuls.collectives[total] == 2 * 5 * 4 * 3 / 4
  assert matmuls.ici_bytes == sum(matmuls.collectives.values())


def test_cycles_of_a_loop_count_every_time(matmuls):
  assert matmuls.cycles == 158_016 + 5 * (15_377 + 1_071_884)
  assert matmuls.unknown_loops == ()


def read(entry, others=''):
  """Reads a program of `entry`, instructions alone, and whole computations."""
  inside = textwrap.indent(textwrap.dedent(entry).strip('\n'), '  ')
  others = textwrap.dedent(others)
  return traffic.read(
    f'HloModule jit_f\n{others}\nENTRY %main () -> f32[] {{\n{inside}\n}}\n',
    longest_ring=8,
  )


def test_vmem_and_scalar_memory_are_not_hbm():
  result = read("""
    %a = f32[256]{0:T(256)} parameter(0)
    %b = f32[256]{0:T(256)S(1)} parameter(1)
    ROOT %c = f32[256]{0:T(256)S(1)} add(%a, %b)
  """)
  assert result.hbm_bytes == 1024


def test_a_prefetch_counts_where_it_begins():
  result = read("""
    %a = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
    %s = (bf16[8,256]{1,0:T(8,128)(2,1)S(1)}, bf16[8,256]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
    ROOT %d = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} copy-done(%s)
  """)
  assert result.hbm_bytes == 8 * 256 * 2


def test_a_prefetched_slice_counts_by_its_own_size():
  result = read("""
    %a = bf16[36,256]{1,0:T(8,128)(2,1)} parameter(0)
    %s = ((bf16[36,256]{1,0:T(8,128)(2,1)}), bf16[1,256]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[3:4], [0:256]}
    ROOT %d = bf16[1,256]{1,0:T(8,128)(2,1)S(1)} slice-done(%s)
  """)
  assert result.hbm_bytes == 256 * 2


STACKED = """
  %take (p: bf16[36,64,128], i: s32[]) -> bf16[64,128] {
    %p = bf16[36,64,128]{2,1,0} parameter(0)
    %i = s32[]{:S(6)} parameter(1)
    %z = s32[] constant(0)
    %s = bf16[1,64,128]{2,1,0} dynamic-slice(%p, %i, %z, %z)
    ROOT %b = bf16[64,128]{1,0} bitcast(%s)
  }
  %put (p: bf16[36,64,128], i: s32[], u: bf16[64,128]) -> bf16[36,64,128] {
    %p = bf16[36,64,128]{2,1,0} parameter(0)
    %i = s32[]{:S(6)} parameter(1)
    %u = bf16[64,128]{1,0} parameter(2)
    %z = s32[] constant(0)
    %b = bf16[1,64,128]{2,1,0} bitcast(%u)
    ROOT %d = bf16[36,64,128]{2,1,0} dynamic-update-slice(%p, %b, %i, %z, %z)
  }
"""


def test_one_layer_of_stacked_weights_counts_as_one_layer():
  result = read(
    """
    %w = bf16[36,64,128]{2,1,0} parameter(0)
    %i = s32[]{:S(6)} parameter(1)
    %x = bf16[64,128]{1,0:S(1)} fusion(%w, %i), kind=kLoop, calls=%take
    ROOT %y = bf16[36,64,128]{2,1,0} fusion(%w, %i, %x), kind=kLoop, calls=%put
    """,
    STACKED,
  )
  # One layer is read from HBM, and one is written to it.
  assert result.hbm_bytes == 2 * 64 * 128 * 2


LOOP = """
  %body (s: (s32[], f32[256])) -> (s32[], f32[256]) {
    %s = (s32[]{:S(6)}, f32[256]{0}) parameter(0)
    %i = s32[]{:S(6)} get-tuple-element(%s), index=0
    %c = s32[]{:S(6)} copy(%i)
    %one = s32[]{:S(6)} constant(2)
    %n = s32[]{:S(6)} add(%c, %one)
    %x = f32[256]{0} get-tuple-element(%s), index=1
    %y = f32[256]{0} negate(%x)
    ROOT %t = (s32[]{:S(6)}, f32[256]{0}) tuple(%n, %y)
  }
  %condition (s: (s32[], f32[256])) -> pred[] {
    %s = (s32[]{:S(6)}, f32[256]{0}) parameter(0)
    %i = s32[]{:S(6)} get-tuple-element(%s), index=0
    %limit = s32[]{:S(6)} constant(11)
    ROOT %lt = pred[]{:S(6)} compare(%i, %limit), direction=LT
  }
"""


def test_a_loop_runs_from_its_first_value_to_its_limit_in_steps():
  # 1, 3, 5, 7, 9.
  result = read(
    """
    %zero = s32[]{:S(6)} constant(1)
    %x = f32[256]{0} parameter(0)
    %start = (s32[]{:S(6)}, f32[256]{0}) tuple(%zero, %x)
    ROOT %w = (s32[]{:S(6)}, f32[256]{0}) while(%start), condition=%condition, body=%body
    """,
    LOOP,
  )
  assert result.hbm_bytes == 5 * 2 * 256 * 4
  assert result.unknown_loops == ()


def test_a_loop_without_a_constant_length_counts_once_and_is_named():
  result = read(
    """
    %zero = s32[]{:S(6)} parameter(1)
    %x = f32[256]{0} parameter(0)
    %start = (s32[]{:S(6)}, f32[256]{0}) tuple(%zero, %x)
    ROOT %w = (s32[]{:S(6)}, f32[256]{0}) while(%start), condition=%condition, body=%body
    """,
    LOOP,
  )
  assert result.hbm_bytes == 2 * 256 * 4
  assert result.unknown_loops == ('w',)


OVERLAPPED = """
  %begin (p: bf16[64,32]) -> (bf16[64,32], bf16[64,128]) {
    %p = bf16[64,32]{1,0} parameter(0)
    %g1 = bf16[64,128]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={1}, frontend_attributes={chain_id="1"}
    ROOT %c = (bf16[64,32]{1,0}, bf16[64,128]{1,0}) custom-call(%g1), custom_call_target="AsyncCollectiveStart"
  }
  %meanwhile (p: bf16[64,32], g: bf16[64,128], x: f32[256]) -> (f32[256], bf16[64,32], bf16[64,128]) {
    %p = bf16[64,32]{1,0} parameter(0)
    %g = bf16[64,128]{1,0} parameter(1)
    %x = f32[256]{0} parameter(2)
    %y = f32[256]{0} negate(%x)
    %g2 = bf16[64,128]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={1}, frontend_attributes={chain_id="1"}
    ROOT %t = (f32[256]{0}, bf16[64,32]{1,0}, bf16[64,128]{1,0}) tuple(%y, %p, %g2)
  }
  %end (p: bf16[64,32], g: bf16[64,128]) -> bf16[64,128] {
    %p = bf16[64,32]{1,0} parameter(0)
    %g = bf16[64,128]{1,0} parameter(1)
    %g3 = bf16[64,128]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={1}, frontend_attributes={chain_id="1"}
    ROOT %c = bf16[64,128]{1,0} custom-call(%p, %g, %g3), custom_call_target="AsyncCollectiveDone"
  }
"""


def test_a_collective_that_overlaps_a_fusion_counts_once():
  result = read(
    """
    %p = bf16[64,32]{1,0} parameter(0)
    %x = f32[256]{0} parameter(1)
    %s = (bf16[64,32]{1,0}, bf16[64,128]{1,0}) fusion(%p), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%begin
    %p1 = bf16[64,32]{1,0} get-tuple-element(%s), index=0
    %g1 = bf16[64,128]{1,0} get-tuple-element(%s), index=1
    %m = (f32[256]{0}, bf16[64,32]{1,0}, bf16[64,128]{1,0}) fusion(%p1, %g1, %x), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%meanwhile
    %p2 = bf16[64,32]{1,0} get-tuple-element(%m), index=1
    %g2 = bf16[64,128]{1,0} get-tuple-element(%m), index=2
    ROOT %d = bf16[64,128]{1,0} fusion(%p2, %g2), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%end
    """,
    OVERLAPPED,
  )
  shard = 64 * 32 * 2
  assert list(result.collectives.values()) == [3 * shard]
  # The shard is read, the whole written, and 256 floats are negated.
  assert result.hbm_bytes == shard + 4 * shard + 2 * 256 * 4


def test_a_reduction_that_keeps_a_part_is_a_reduce_scatter():
  result = read(
    """
    %p = f32[128,64]{1,0} parameter(0)
    ROOT %f = f32[32,64]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
    """,
    """
    %all-reduce-scatter.1 (p: f32[128,64]) -> f32[32,64] {
      %p = f32[128,64]{1,0} parameter(0)
      %r = f32[128,64]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
      %i = u32[] partition-id()
      %z = u32[] constant(0)
      ROOT %d = f32[32,64]{1,0} dynamic-slice(%r, %i, %z), dynamic_slice_sizes={32,64}
    }
    """,
  )
  ((collective, size),) = result.collectives.items()
  assert collective.kind == 'reduce-scatter'
  assert size == 128 * 64 * 4 * 3 / 4


def test_kernels_are_counted_by_name():
  result = read("""
    %q = bf16[4,128]{1,0} parameter(0)
    ROOT %splash_mha_fwd.3 = bf16[4,128]{1,0} custom-call(%q), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
    "block":"128"
    }}
  """)
  assert result.kernels == {'splash_mha_fwd': 1}
  assert result.hbm_bytes == 2 * 4 * 128 * 2


@pytest.mark.parametrize(
  ('opcode', 'groups', 'size', 'expected'),
  [
    ('all-gather', 'replica_groups={{0,1,2,3},{4,5,6,7}}', 4, 3),
    ('reduce-scatter', 'replica_groups=[2,4]<=[8]', 4, 3 / 4),
    ('all-reduce', "replica_groups=mesh['a'=2,'b'=4] {'b'}", 4, 2 * 3 / 4),
    ('all-reduce', "replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8, 2 * 7 / 8),
    ('all-reduce', "replica_groups=mesh['a'=8] {'a':(1)2}", 2, 2 * 1 / 2),
    ('all-to-all', 'replica_groups={{0,1}}', 2, 1 / 2),
    ('all-to-all', 'replica_groups={{0,1,2,3,4,5,6,7}}', 8, 2),
    ('all-to-all', 'replica_groups=[1,64]<=[64]', 64, 2),
    ('collective-permute', 'source_target_pairs={{0,1},{1,0}}', 2, 1),
    ('all-gather', 'replica_groups={{0},{1}}', 1, 0),
  ],
)
def test_what_a_ring_carries(opcode, groups, size, expected):
  result = read(f"""
    %p = f32[256]{{0}} parameter(0)
    ROOT %r = f32[256]{{0}} {opcode}(%p), {groups}
  """)
  ((collective, num_bytes),) = result.collectives.items()
  assert collective.group_size == size
  assert num_bytes == expected * 1024


def test_a_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match='ENTRY computation, got'):
    traffic.read('not a program', longest_ring=8)
