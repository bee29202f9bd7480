"""Writes an experiment's report, and says its gist on a terminal.

results = report.write('runs/activations')   # report.html, .md, summary.csv, table.tex, plots/
report.console(results, rich.console.Console())
"""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformer.analysis import (
  experts,
  facts,
  inside,
  latex,
  method,
  next_step,
  page,
  plots,
  routing,
  samples,
  search,
  table,
  verdict,
)
from transformer.analysis.load import load
from transformer.analysis.results import Results


def write(
  workdirs: str | Path | Sequence[str | Path],
  by: str = '',
  baseline: str = '',
  out: str | Path | None = None,
) -> Results:
  """Writes report.html, report.md, summary.csv, table.tex and plots/*.png from what there is now.

  Arguments are those of `load`. Works on half-finished folders. Each file is replaced whole, so a
  reader never sees half of one. Raises UserError where `load` does.
  """
  results = load(workdirs, by, baseline, out)
  pictures = plots.draw(results)
  for picture in pictures:
    _replace(results.out / 'plots' / f'{picture.name}.png', picture.light)
  for name in set(plots.NAMES) - {p.name for p in pictures}:  # of an earlier report
    (results.out / 'plots' / f'{name}.png').unlink(missing_ok=True)
  _replace(results.out / 'summary.csv', summary(results).encode())
  _replace(results.out / 'table.tex', latex.tex(results).encode())
  _replace(results.out / 'report.md', markdown(results, pictures).encode())
  _replace(results.out / 'report.html', page.html(results, pictures).encode())
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
  parts.append('Also as [summary.csv](summary.csv) · [table.tex](table.tex)')
  parts += [_linked(p) for p in pictures if not p.section]
  if found := samples.samples(results):
    parts += [f'## {page.SAMPLES}', samples.CAPTION, *map(_sample, found)]
  parts += _experts(results, pictures)
  if found := [_linked(p) for p in pictures if p.section == inside.SECTION]:
    parts += [f'## {inside.SECTION}', _keyed(results, *inside.table(results)), *found]
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


def _linked(p: plots.Plot) -> str:
  return f'![{p.name}](plots/{p.name}.png)\n\n{p.caption}'


def _bullets(lines) -> str:
  return '\n'.join(f'- {line}' for line in lines)


def _fenced(text: str) -> str:
  longest = max((len(run) for run in re.findall('`+', text)), default=0)
  fence = '`' * max(3, longest + 1)
  return f'{fence}\n{text}\n{fence}'


def _sample(sample: samples.Sample) -> str:
  """A source and what was said of it, each in its own fence: any text may stand in them."""
  told = (('reference', sample.reference), *sample.said)
  said = '\n'.join(f'{who}: {text}' for who, text in told)
  return f'{_fenced(samples.clipped(sample.source))}\n\n{_fenced(said)}'


def _markdown_table(results: Results) -> str:
  columns = table.columns(results)
  rows = _variants(results, columns)
  rows += table.references(results, columns)
  return _markdown_rows([c.heading for c in columns], rows, [c.text for c in columns])


def _experts(results: Results, pictures: list[plots.Plot]) -> list[str]:
  """Routing health and what each expert likes."""
  headings, rows = routing.table(results)
  parts = [routing.NOTE, _keyed(results, headings, rows)] if rows else []
  parts += [_linked(p) for p in pictures if p.section == routing.SECTION]
  liked = experts.likes(results)
  parts += [experts.caption(results)] if liked else []
  for likes in liked:
    told = [[*cells, ' '.join(map(_code, tokens))] for *cells, tokens in likes.rows]
    left = [heading == 'tokens' for heading in experts.HEADINGS]
    parts += [f'### {experts.title(likes)}', _markdown_rows(list(experts.HEADINGS), told, left)]
  return [f'## {routing.SECTION}', *parts] if parts else []


def _code(text: str) -> str:
  """As code, whatever it holds."""
  return f'`` {text} ``' if '`' in text else f'`{text}`'


def _keyed(results: Results, headings: list[str], rows: list[list[str]]) -> str:
  """A table whose first columns tell variants apart."""
  keys = max(1, len(results.by))
  return _markdown_rows(headings, rows, [i < keys for i in range(len(headings))])


def _markdown_rows(headings: list[str], rows: list[list[str]], left: list[bool]) -> str:
  def line(cells) -> str:
    return f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in cells)} |'

  rule = line('---' if text else '---:' for text in left)
  return '\n'.join([line(headings), rule, *map(line, rows)])


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
  if found := search.best(results):
    console.print(Padding(_styled(found), (0, 0, 0, 2), expand=False))
  for sample in samples.samples(results, 2):
    console.print()
    _print_sample(sample, console)
  for step in next_step.suggest(results):
    console.print()
    console.print(Text('Next: ', style='bold') + _styled(f'{step.why} {step.cost}.'))
    # soft_wrap keeps the command on one logical line, so that it can be copied
    console.print(Text(f'  {step.command}'), soft_wrap=True)
  for cell in results.by_state('failed'):
    console.print(Text(f'failed: {cell.name}: {facts.failure(cell)[0]}', style='red'))
  console.print()
  console.print(Text(f'Report: {results.out / "report.html"}'), soft_wrap=True)


def _print_sample(sample: samples.Sample, console) -> None:
  """A line for each text, as much of it as there is room for."""
  from rich.text import Text

  told = (('source', sample.source), ('reference', sample.reference), *sample.said)
  width = max(len(who) for who, _ in told)
  for who, text in told:
    line = Text(f'{who:>{width}}  ', style='dim').append(' '.join(text.split()), style='default')
    console.print(line, no_wrap=True, overflow='ellipsis')


def _fit(results: Results, console) -> list:
  """The table; where the terminal is too narrow, further ones hold the lesser columns."""
  columns = table.columns(results)
  keys, columns = [c for c in columns if c.key], [c for c in columns if not c.key]
  tables = []
  while columns:
    fitting, rest = list(columns), []
    while len(fitting) > 1 and not _widths(results, [*keys, *fitting], console.width):
      least = max(range(len(fitting)), key=lambda i: (fitting[i].rank, i))
      rest.append(fitting.pop(least))
    tables.append(_rich_table(results, [*keys, *fitting], console.width))
    columns = [c for c in columns if c in rest]
  return tables


_EDGES, _BETWEEN = 2, 3  # of a table, and between two of its columns


def _widths(results: Results, columns: list[table.Column], room: int) -> list[int]:
  """Widths in which every cell stands whole, headings over as few lines as may be; [] if none.

  Rich by itself drops columns where it could have wrapped a heading.
  """
  rows = _variants(results, columns) + _counts(results, columns)
  least = [
    max(map(len, [*c.heading.split(), *texts])) for c, *texts in zip(columns, *rows, strict=True)
  ]
  widths = [max(len(c.heading), n) for c, n in zip(columns, least, strict=True)]
  over = sum(widths) + _BETWEEN * (len(widths) - 1) + _EDGES - room
  while over > 0:
    at = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
    if widths[at] == least[at]:
      return []
    widths[at] -= 1
    over -= 1
  return widths


def _variants(results: Results, columns: list[table.Column]) -> list[list[str]]:
  return [[c.show(v) for c in columns] for v in results.ranked]


def _counts(results: Results, columns: list[table.Column]) -> list[list[str]]:
  """Rows of n-gram counts that have a number in these columns."""
  return [row for row in table.references(results, columns) if any(row[1:])]


def _rich_table(results: Results, columns: list[table.Column], room: int):
  from rich import box
  from rich.table import Table
  from rich.text import Text

  drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  widths = _widths(results, columns, room) or [None] * len(columns)
  for c, width in zip(columns, widths, strict=True):
    drawn.add_column(Text(c.heading), justify='left' if c.text else 'right', width=width)
  styles = {'better': 'green', 'worse': 'red', 'tie': 'dim'}
  for texts in _variants(results, columns):
    drawn.add_row(*(Text(t, style=styles.get(t, ''), no_wrap=True) for t in texts))
  for texts in _counts(results, columns):
    drawn.add_row(*(Text(t, style='dim', no_wrap=True) for t in texts))
  return drawn


def _styled(sentence: str):
  """`names` in bold; nothing else is read as markup."""
  from rich.text import Text

  text = Text()
  for i, part in enumerate(sentence.split('`')):
    text.append(part, style='bold' if i % 2 else '')
  return text
