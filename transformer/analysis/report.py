"""Writes an experiment's report, and says its gist on a terminal.

results = report.write('runs/activations')   # report.html report.md summary.csv plots/*.png
report.console(results, rich.console.Console())
"""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from pathlib import Path

from transformer.analysis import facts, method, next_step, page, plots, table, verdict
from transformer.analysis.results import Results, load


def write(workdir: str | Path) -> Results:
  """Writes report.html, report.md, summary.csv and plots/*.png from what the folder holds now.

  Works on a half-finished folder. Each file is replaced whole, so a reader never sees half of
  one. Raises UserError where experiment.json is missing or broken.
  """
  results = load(workdir)
  pictures = plots.draw(results)
  for picture in pictures:
    _replace(results.workdir / 'plots' / f'{picture.name}.png', picture.light)
  _replace(results.workdir / 'summary.csv', summary(results).encode())
  _replace(results.workdir / 'report.md', markdown(results, pictures).encode())
  _replace(results.workdir / 'report.html', page.html(results, pictures).encode())
  return results


def _replace(path: Path, content: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
  try:
    with os.fdopen(handle, 'wb') as file:
      file.write(content)
    os.chmod(name, 0o644)  # mkstemp's is private, a report is to be shared
    os.replace(name, path)
  except BaseException as e:
    Path(name).unlink(missing_ok=True)
    if isinstance(e, OSError):
      e.filename = str(path)  # a full disk is reported by write(), which knows no name
    raise


def summary(results: Results) -> str:
  """summary.csv: one row a variant."""
  rows = table.records(results)
  out = io.StringIO()
  writer = csv.DictWriter(out, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()


def markdown(results: Results, pictures: list[plots.Plot]) -> str:
  """report.md: the page's content, pictures linked."""
  first, *rest = verdict.sentences(results)
  parts = [f'# {results.question or results.name}', first]
  parts.append(_bullets(rest))
  steps = next_step.suggest(results)
  if steps:
    parts.append('## The next better experiment')
    parts += [f'{s.why}\n\n```\n{s.command}\n```\n\nCost: {s.cost}.' for s in steps]
  parts += ['## Results', _markdown_table(results)]
  parts += [f'![{p.name}](plots/{p.name}.png)\n\n{p.caption}' for p in pictures]
  failed = results.by_state('failed')
  if failed:
    parts.append('## Failed cells')
  for cell in failed:
    title, tail = facts.failure(cell)
    parts.append(f'`{cell.name}`: {title}' + (f'\n\n{_fenced(tail)}' if tail else ''))
  for title, lines in (
    ('Unfinished cells', facts.unfinished(results)),
    ('Notes', results.notes),
    ('Data', [f'{k}: {v}' for k, v in facts.data(results)]),
    ('Provenance', [f'{k}: {v}' for k, v in facts.provenance(results)]),
    ('Protocol', method.protocol(results)),
    ('How each number is made', method.numbers(results)),
  ):
    if lines:
      parts += [f'## {title}', _bullets(lines)]
  return '\n\n'.join(p for p in parts if p) + '\n'


def _bullets(lines) -> str:
  return '\n'.join(f'- {line}' for line in lines)


def _fenced(text: str) -> str:
  longest = max((len(run) for run in re.findall('`+', text)), default=0)
  fence = '`' * max(3, longest + 1)
  return f'{fence}\n{text}\n{fence}'


def _markdown_table(results: Results) -> str:
  columns = table.columns(results)

  def line(cells) -> str:
    return f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in cells)} |'

  head = line(c.heading for c in columns)
  rule = line('---' if c.text else '---:' for c in columns)
  rows = [[c.show(v) for c in columns] for v in results.ranked]
  rows += table.references(results, columns)
  return '\n'.join([head, rule, *map(line, rows)])


def console(results: Results, console) -> None:
  """Table, verdict, next step and the page's path, for a rich Console of any width."""
  from rich.padding import Padding
  from rich.text import Text

  if results.done:
    for drawn in _fit(results, console):
      console.print(drawn)
    console.print()
  first, *rest = verdict.sentences(results)
  console.print(_styled(first))
  for sentence in rest:
    console.print(Padding(_styled(sentence), (0, 0, 0, 2), expand=False))
  for step in next_step.suggest(results):
    console.print()
    console.print(Text('Next: ', style='bold') + Text(f'{step.why} {step.cost}.'))
    # soft_wrap keeps the command on one logical line, so that it can be copied
    console.print(Text(f'  {step.command}'), soft_wrap=True)
  for cell in results.by_state('failed'):
    console.print(Text(f'failed: {cell.name}: {facts.failure(cell)[0]}', style='red'))
  console.print()
  console.print(Text(f'Report: {results.workdir / "report.html"}'), soft_wrap=True)


def _fit(results: Results, console) -> list:
  """The table; where the terminal is too narrow, further ones hold the lesser columns."""
  name, *columns = table.columns(results)
  tables = []
  while columns:
    fitting, rest = list(columns), []
    while len(fitting) > 1 and not _fits(_rich_table(results, [name, *fitting]), console):
      least = max(range(len(fitting)), key=lambda i: (fitting[i].rank, i))
      rest.append(fitting.pop(least))
    tables.append(_rich_table(results, [name, *fitting]))
    columns = [c for c in columns if c in rest]
  return tables


def _fits(drawn, console) -> bool:
  from rich.measure import Measurement

  roomy = console.options.update(max_width=1000)  # else what is too wide measures as just fitting
  return Measurement.get(console, roomy, drawn).minimum <= console.width


def _rich_table(results: Results, columns: list[table.Column]):
  from rich import box
  from rich.table import Table
  from rich.text import Text

  drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  counts = [row for row in table.references(results, columns) if any(row[1:])]
  for c, *below in zip(columns, *counts, strict=True):
    shown = [*below, *(c.show(v) for v in results.ranked)]
    width = max(map(len, c.heading.split() + shown))
    drawn.add_column(Text(c.heading), justify='left' if c.text else 'right', min_width=width)
  styles = {'better': 'green', 'worse': 'red', 'tie': 'dim'}
  for v in results.ranked:
    texts = [c.show(v) for c in columns]
    drawn.add_row(*(Text(t, style=styles.get(t, ''), no_wrap=True) for t in texts))
  for row in counts:
    drawn.add_row(*(Text(t, style='dim', no_wrap=True) for t in row))
  return drawn


def _styled(sentence: str):
  """`names` in bold; nothing else is read as markup."""
  from rich.text import Text

  text = Text()
  for i, part in enumerate(sentence.split('`')):
    text.append(part, style='bold' if i % 2 else '')
  return text
