"""table.tex: the main table for a paper, to be taken in by \\input{table.tex}."""

from __future__ import annotations

import re

from transformer.analysis import facts, table, verdict
from transformer.analysis.results import Results

_ESCAPES = {
  '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '&': r'\&', '%': r'\%', '$': r'\$',
  '#': r'\#', '_': r'\_', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': '$<$',
  '>': '$>$', '|': '$|$', '−': '$-$', '±': r'$\pm$', '×': r'$\times$', '–': '--', '…': r'\ldots{}',
  '’': "'", '"': "''", '²': '$^2$', '†': r'$^\dagger$', '\xa0': '~',
}  # fmt: skip
_MACHINE = ('tokens/s',)  # tell of a machine, not of a variant


def escape(text: str) -> str:
  """Plain text as LaTeX shows it, without commands of its own."""
  return ''.join(_ESCAPES.get(c, ' ' if c < ' ' else c) for c in text)


def tex(results: Results) -> str:
  """A tabular with its facts as comments above; compiles with or without booktabs."""
  columns = [c for c in table.columns(results) if c.heading not in _MACHINE]
  rows = [[c.show(v) for c in columns] for v in results.ranked]
  counts = table.references(results, columns)
  align = ''.join('l' if c.text else 'r' for c in columns)
  lines = [
    *(f'% {line}' for line in _comments(results)),
    '% its rules are those of booktabs, and plain ones without that package',
    *(rf'\providecommand{{\{rule}}}{{\hline}}' for rule in _RULES),
    rf'\begin{{tabular}}{{{align}}}',
    r'\toprule',
    _row(c.heading for c in columns),
    r'\midrule',
    *map(_row, rows),
    *([r'\midrule', *map(_row, counts)] if counts else []),
    r'\bottomrule',
    r'\end{tabular}%',
  ]
  return '\n'.join(lines) + '\n'


_RULES = ('toprule', 'midrule', 'bottomrule')


def _row(cells) -> str:
  return ' & '.join(_maths(escape(cell)) for cell in cells) + r' \\'


def _maths(text: str) -> str:
  """'$-$0.044 $\\pm$ 0.007' -> '$-0.044 \\pm 0.007$': a number is one formula."""
  number = r'(?:\$[-]\$|\+)?[\d.,]+'
  if re.fullmatch(rf'{number}(?: \$\\pm\$ {number})?', text):
    inner = text.replace('$', '').replace(',', '{,}')
    return f'${inner}$' if inner != text else text
  return text


def _comments(results: Results) -> list[str]:
  """The caption's facts, a line each: question, shape and budget, how made, where from."""
  told = dict(facts.provenance(results))
  found = [
    results.question or results.name,
    verdict.answer(results).where,
    'mean over seeds, ± half the 95 % t interval; differences are paired by seed, p by Holm',
    *(
      f'{k}: {told[k]}' for k in ('digest of the code', 'commit', 'device', 'command') if k in told
    ),
    f'made by experiments.report from {told.get("folder") or told.get("folders")}',
  ]
  return [' '.join(line.split()) for line in found if line]
