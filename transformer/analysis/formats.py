"""Numbers as text. Prose, HTML and terminal take the true minus sign; files for machines do not."""

from __future__ import annotations

import math

from transformer.analysis.stats import Sample

NONE = '–'


def digits(half: float | None) -> int:
  """Decimals of a loss: three, four where the interval would else read as zero."""
  return 4 if half is not None and 0 < half < 0.001 else 3


def loss(value: float | None, places: int = 3) -> str:
  """3.771, or – for what is not there."""
  return NONE if value is None or math.isnan(value) else minus(f'{value:.{places}f}')


def signed(value: float, places: int = 3) -> str:
  """−0.044 or +0.077."""
  return minus(f'{value:+.{places}f}')


def with_interval(sample: Sample, sign: bool = False, places: int = 0) -> str:
  """'3.771 ± 0.006'; only the mean where there is no interval; – where there is nothing.

  places: decimals; 0: those of a loss.
  """
  if not sample.n:
    return NONE
  places = places or digits(sample.half)
  mean = signed(sample.mean, places) if sign else loss(sample.mean, places)
  return mean if sample.half is None else f'{mean} ± {sample.half:.{places}f}'


def minus(text: str) -> str:
  """Hyphen to minus sign."""
  return text.replace('-', '−')


def p_value(p: float | None) -> str:
  """'.013', '< .001', –."""
  if p is None:
    return NONE
  return '< .001' if p < 0.001 else f'{p:.3f}'.removeprefix('0')


def count(n: float | None) -> str:
  """319,968."""
  return NONE if n is None else f'{round(n):,}'


def short(n: float | None, unit: str = '') -> str:
  """0.41 M, 12.3 k, 1.20 T, with three digits."""
  if n is None:
    return NONE
  for size, prefix in ((1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e5, 'M'), (1e3, 'k')):
    if abs(n) >= size:
      scaled = n / (1e6 if prefix == 'M' else size)
      places = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
      return f'{scaled:.{places}f} {prefix}{unit}'
  return f'{n:.0f} {unit}'.rstrip()


def duration(seconds: float) -> str:
  """'40 s', '7 min', '1 h 40 min', '3 days'."""
  if seconds < 90:
    return f'{max(1, round(seconds))} s'
  minutes = round(seconds / 60)
  if minutes < 90:
    return f'{minutes} min'
  if minutes < 48 * 60:
    hours, rest = divmod(minutes, 60)
    return f'{hours} h {rest} min' if rest else f'{hours} h'
  return f'{minutes / 1440:.1f} days'


def listing(items: list[str], last: str = 'and', most: int = 0) -> str:
  """'a', 'a and b', 'a, b and c'; past `most`, where given, 'a, b and 7 more'."""
  if most and len(items) > most:
    items = [*items[: most - 1], f'{len(items) - most + 1} more']
  if len(items) < 2:
    return ''.join(items)
  return f'{", ".join(items[:-1])} {last} {items[-1]}'
