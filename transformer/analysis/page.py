"""report.html: one self-contained file without scripts, light or dark as the reader's system is."""

from __future__ import annotations

import base64
import re
from html import escape

from transformer.analysis import (
  experts,
  facts,
  inside,
  method,
  next_step,
  routing,
  samples,
  table,
  verdict,
)
from transformer.analysis.grid import grid
from transformer.analysis.results import Results, Variant
from transformer.analysis.style import CSS
from transformer.analysis.theme import Plot

FILES = ('summary.csv', 'table.tex', 'report.md')  # beside the page


SAMPLES = 'Samples'


def html(results: Results, plots: list[Plot]) -> str:
  """The whole page; every text from a folder is escaped."""
  first = plots[:1] if grid(results) else []  # of a grid the picture says more than the table
  parts = [
    _head(results),
    _answer(results),
    _next(results),
    _section('Results', ''.join(map(_figure, first)) + _table(results) + _files()),
    ''.join(_figure(p) for p in plots if not p.section and p not in first),
    _section(SAMPLES, _samples(results)),
    _section(routing.SECTION, _experts(results, plots)),
    _section(inside.SECTION, _inside(results, plots)),
    _failed(results),
    _section('Unfinished cells', _list(facts.unfinished(results))),
    _section('Notes', _list(results.notes)),
    _section('Data', _definitions(facts.data(results))),
    _section('Provenance', _definitions(facts.provenance(results))),
    _section('Protocol', _list(method.protocol(results))),
    _section('How each number is made', _list(method.numbers(results))),
  ]
  title = escape(results.question or results.name)
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n'
    f'{"".join(parts)}</main>\n</body>\n</html>\n'
  )


def _prose(text: str) -> str:
  """Escapes, sets `names` in bold, and keeps a number and its interval on one line."""
  text = escape(text).replace(' ± ', '&nbsp;±&nbsp;')
  return re.sub(r'`([^`]+)`', r'<b class="name">\1</b>', text)


def _section(title: str, body: str) -> str:
  return f'<section>\n<h2>{title}</h2>\n{body}</section>\n' if body else ''


def _list(items) -> str:
  lines = ''.join(f'<li>{_prose(item)}</li>\n' for item in items)
  return f'<ul class="small">\n{lines}</ul>\n' if lines else ''


def _definitions(items: list[tuple[str, str]]) -> str:
  rows = ''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>\n' for k, v in items)
  return f'<dl>\n{rows}</dl>\n' if rows else ''


def _head(results: Results) -> str:
  name = escape(results.name)
  return f'<p class="kicker">{name}</p>\n<h1>{escape(results.question or results.name)}</h1>\n'


def _answer(results: Results) -> str:
  a = verdict.answer(results)
  found = _prose(a.found[:1].upper() + a.found[1:] if a.found[:1] != '`' else a.found)
  where = f'<p class="where">{_prose(a.where)}:</p>\n' if a.where else ''
  details = ''.join(f'<li>{_prose(d)}</li>\n' for d in a.details)
  return (
    f'<section class="answer">\n{where}<p class="found">{found}</p>\n<ul>\n{details}</ul>\n'
    '</section>\n'
  )


def _next(results: Results) -> str:
  body = ''.join(
    f'<div class="step"><p>{_prose(s.why)}</p>\n<pre>{escape(s.command)}</pre>\n'
    f'<p class="cost">Cost: {escape(s.cost)}.</p></div>\n'
    for s in next_step.suggest(results)
  )
  return _section('The next better experiment', body)


def _files() -> str:
  links = ' · '.join(f'<a href="{name}">{name}</a>' for name in FILES)
  return f'<p class="small">Also as {links}</p>\n'


def _samples(results: Results) -> str:
  """Sources with what they should give and what each variant gave."""
  body = ''
  for sample in samples.samples(results):
    told = (('reference', sample.reference), *sample.said)
    rows = ''.join(f'<dt>{escape(who)}</dt><dd>{escape(text)}</dd>\n' for who, text in told)
    source = escape(samples.clipped(sample.source))
    body += f'<div class="sample"><pre>{source}</pre>\n<dl>\n{rows}</dl></div>\n'
  return f'<p class="small">{samples.CAPTION}</p>\n{body}' if body else ''


def _inside(results: Results, plots: list[Plot]) -> str:
  """The FFN's own statistics: a compact table and the picture by layer."""
  headings, rows = inside.table(results)
  keys = max(1, len(results.by))
  if len(headings) == keys:
    return ''
  note = '<p class="small">At the last evaluation, mean over layers and finished seeds.</p>\n'
  return note + _plain_table(headings, rows, keys) + _figures(plots, inside.SECTION)


def _experts(results: Results, plots: list[Plot]) -> str:
  """Routing health as a table and in time, and what each expert likes."""
  headings, rows = routing.table(results)
  body = ''
  if rows:
    note = f'<p class="small">{escape(routing.NOTE)}</p>\n'
    body = note + _plain_table(headings, rows, max(1, len(results.by)))
  body += _figures(plots, routing.SECTION)
  liked = experts.likes(results)
  if liked:
    body += f'<p class="small">{escape(experts.caption(results))}</p>\n'
  return body + ''.join(_likes(found, ' open' * (found is liked[0])) for found in liked)


def _likes(found: experts.Likes, is_open: str) -> str:
  """What the experts of one variant like."""
  *heads, last = experts.HEADINGS
  rows = f'<tr>{"".join(f"<th>{h}</th>" for h in heads)}<th class="text">{last}</th></tr>\n'
  for *cells, tokens in found.rows:
    signs = ' '.join(f'<code>{escape(token)}</code>' for token in tokens)
    told = ''.join(f'<td>{escape(cell)}</td>' for cell in cells)
    rows += f'<tr>{told}<td class="text">{signs}</td></tr>\n'
  return (
    f'<details{is_open}><summary>{escape(experts.title(found))}</summary>\n'
    f'<div class="scroll"><table class="likes">\n{rows}</table></div></details>\n'
  )


def _figures(plots: list[Plot], section: str) -> str:
  return ''.join(_figure(p) for p in plots if p.section == section)


def _plain_table(headings: list[str], rows: list[list[str]], keys: int) -> str:
  """Of texts, of which the first `keys` in a row tell it from others."""

  def line(tag: str, cells: list[str]) -> str:
    kinds = [' class="text"' if i < keys else '' for i in range(len(cells))]
    shown = zip(kinds, cells, strict=True)
    return f'<tr>{"".join(f"<{tag}{kind}>{escape(c)}</{tag}>" for kind, c in shown)}</tr>\n'

  head, body = line('th', headings), ''.join(line('td', row) for row in rows)
  return (
    f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'
  )


def _table(results: Results) -> str:
  columns = table.columns(results)
  head = ''.join(
    f'<th scope="col"{_class("text" if c.text else "")}>{escape(c.heading)}</th>' for c in columns
  )
  rows = ''.join(_row(results, columns, v) for v in results.ranked)
  for name, *rest in table.references(results, columns):
    cells = ''.join(f'<td>{escape(text)}</td>' for text in rest)
    rows += f'<tr class="count"><th scope="row" class="text">{escape(name)}</th>{cells}</tr>\n'
  return (
    f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n'
    '</table></div>\n'
  )


def _row(results: Results, columns: list[table.Column], variant: Variant) -> str:
  first, *rest = columns
  cells = f'<th scope="row" class="text">{escape(first.show(variant))}</th>'
  for c in rest:
    text = c.show(variant)
    kind = text.split()[-1] if text in table.VERDICTS else ''
    kind = 'few' if kind == 'seeds' else kind
    cells += f'<td{_class(" ".join(filter(None, ["text" if c.text else "", kind])))}>'
    cells += f'{escape(text)}</td>'
  return f'<tr{_class("baseline" if variant.name == results.baseline else "")}>{cells}</tr>\n'


def _class(name: str) -> str:
  return f' class="{name}"' if name else ''


def _figure(plot: Plot) -> str:
  light, dark = (base64.b64encode(image).decode() for image in (plot.light, plot.dark))
  caption = escape(plot.caption)
  return (
    '<figure>\n<picture>'
    f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
    f'<img alt="{caption}" src="data:image/png;base64,{light}"></picture>\n'
    f'<figcaption>{caption}</figcaption>\n</figure>\n'
  )


def _failed(results: Results) -> str:
  body = ''
  for cell in results.by_state('failed'):
    title, tail = facts.failure(cell)
    body += f'<p><b class="name">{escape(cell.name)}</b>: {escape(title)}</p>\n'
    body += f'<pre>{escape(tail)}</pre>\n' if tail else ''
  return _section('Failed cells', body)
