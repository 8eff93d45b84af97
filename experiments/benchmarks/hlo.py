"""Reads out of a program what devices say to each other."""

import collections
import math
import re

_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
          'collective-permute')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_COLLECTIVE = re.compile(rf'= (.*?) ({"|".join(_KINDS)})(-start)?\(')
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(
    r'(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


def collectives(compiled):
  """Returns {(kind, type): times} of the collectives that a run executes.

  Those in the body of a loop count once per turn, those in the branches of a
  conditional as if all of them were taken.

  Args:
    compiled: what `jit(f).lower(...).compile()` returns. `type` is that of a
      result as HLO writes it, 'f32[8,24]'; one collective may have several,
      which count as one each.
  """
  lines, entry, name = collections.defaultdict(list), None, None
  for line in compiled.as_text().splitlines():
    if match := _COMPUTATION.match(line):
      name = match.group(2)
      entry = name if match.group(1) else entry
    lines[name].append(line)

  def count(name):
    total = collections.Counter()
    for line in lines[name]:
      if match := _COLLECTIVE.search(line):
        for shape in re.findall(r'\w+\[[\d,]*\]', match.group(1)):
          total[match.group(2), shape] += 1
        continue
      called = _CALLED.findall(line)
      for branches in _BRANCHES.findall(line):
        called += re.findall(r'[\w.\-]+', branches)
      trips = _TRIPS.search(line)
      if ' while(' in line and not trips and any(map(count, called)):
        raise ValueError(f'A loop of unknown length talks: {line}')
      for other in called:
        for key, times in count(other).items():
          total[key] += times * int(trips.group(1) if trips else 1)
    return total

  return dict(count(entry))


_BITS = {'pred': 8, 's8': 8, 'u8': 8, 'bf16': 16, 'f16': 16, 's16': 16,
         'u16': 16, 'f32': 32, 's32': 32, 'u32': 32, 'f64': 64, 's64': 64,
         'u64': 64}


def received_bytes(compiled, devices):
  """Returns the bytes that a device receives in a run of a program, at least.

  With S devices: of a result of n bytes, all-gather and all-to-all
  n (S - 1) / S, a sum over devices twice that, one whose shards are n bytes
  n (S - 1), a permutation n.

  Args:
    compiled: as of `collectives`.
    devices: S.
  """
  others = devices - 1
  factors = {'all-gather': others / devices, 'all-to-all': others / devices,
             'all-reduce': 2 * others / devices, 'reduce-scatter': others,
             'collective-permute': 1}
  total = 0.
  for (kind, shape), times in collectives(compiled).items():
    dtype, _, sizes = shape.rstrip(']').partition('[')
    count = math.prod(int(size) for size in sizes.split(',') if size)
    total += times * factors[kind] * count * _BITS[dtype] / 8
  return total


def summed_types(lowered):
  """Returns the element types that are summed over devices, {'f32', ...}.

  Args:
    lowered: StableHLO, `jit(f).lower(...).as_text()`; before XLA's CPU backend
      turns sums of bfloat16 into those of float32.
  """
  return set(re.findall(
      r'stablehlo\.(?:all_reduce|reduce_scatter)".*?\^bb0\(%\w+: tensor<(\w+)>',
      lowered, re.DOTALL))
