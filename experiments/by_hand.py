"""A Transformer block worked by hand, in small integers, every matrix of it.

python -m experiments.by_hand
python -m experiments.by_hand --part=mixing --blank

mixing: attention mixes positions, the FFN mixes features. encoder: a block of four heads with its
Add & Norm, every shape as it goes. norm: layer norm. The numbers are those of the library's own
modules. --blank prints the worksheet: inputs and weights are there, results are to be filled in.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiments import lab
from transformer import flags
from transformer.errors import UserError, nearest

if TYPE_CHECKING:
  from rich.text import Text

  from transformer.worked import Matrix

PART = flags.script_flag('str', 'part', 'all', 'mixing, encoder, norm or all')
BLANK = flags.script_flag('bool', 'blank', False, 'leave the results out: a worksheet')
TITLES = {
  'mixing': 'Attention mixes positions, the FFN mixes features',
  'encoder': 'An encoder block, shape by shape',
  'norm': 'Layer norm',
}


def main() -> int:
  part = PART.value
  if part not in (*TITLES, 'all'):
    raise UserError(f'--part={part}: no such part{nearest(part, [*TITLES, "all"])}')
  from rich.text import Text

  from transformer.worked import PARTS

  out = lab.console()
  for name in TITLES if part == 'all' else [part]:
    out.rule(TITLES[name], characters='─')
    for step in PARTS[name]():
      says = step.says if BLANK.value else f'{step.says} {step.answer}'.strip()
      if says:
        out.print(Text(says, style='italic'))
      for line in _side_by_side([_lines(matrix) for matrix in step.matrices], out.width):
        out.print(line)
      out.print()
  return 0


def _lines(matrix: Matrix) -> list[str]:
  """A matrix as lines of equal length: its name, labels of columns, rows with theirs."""
  rows = _shown(matrix.values.tolist())
  if BLANK.value and not matrix.given:
    rows = [['____'] * len(row) for row in rows]
  width = max(len(cell) for row in [*rows, matrix.columns] for cell in row)
  label = max(map(len, matrix.rows))
  lines = [f'{"":{label}}   {" ".join(c.rjust(width) for c in matrix.columns)}  ']
  for name, row in zip(matrix.rows, rows, strict=True):
    lines.append(f'{name:{label}} [ {" ".join(cell.rjust(width) for cell in row)} ]')
  longest = max(len(matrix.name), len(lines[0]))
  return [line.ljust(longest) for line in (matrix.name, *lines)]


def _shown(values: list[list[float]]) -> list[list[str]]:
  """Integers as integers; two decimals where any is not one."""
  whole = all(abs(x - round(x)) < 1e-4 for row in values for x in row)
  digits = 0 if whole else 2
  from transformer.analysis.formats import minus  # NumPy comes with it

  return [[minus(f'{round(x, digits) + 0.0:.{digits}f}') for x in row] for row in values]


def _side_by_side(blocks: list[list[str]], width: int, gap: str = '    ') -> Iterator[Text]:
  """Lines of blocks beside each other, as many as there is room for, then the next below."""
  from rich.text import Text

  while blocks:
    fit = 1
    while fit < len(blocks) and len(gap.join(b[0] for b in blocks[: fit + 1])) <= width:
      fit += 1
    row, blocks = blocks[:fit], blocks[fit:]
    for i, parts in enumerate(itertools.zip_longest(*row)):
      cells = [part or ' ' * len(block[0]) for part, block in zip(parts, row, strict=True)]
      yield Text(gap.join(cells).rstrip(), style={0: 'bold', 1: 'dim'}.get(i, ''))


if __name__ == '__main__':
  flags.run(main)
