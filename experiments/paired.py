"""Values of one setting, compared over paired seeds: from flags to cells.

A script defines the flags, says how a value becomes a config, and hands `experiment(…)` to lab.run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

from experiments import lab
from experiments.lab import FLAGS
from experiments.plan import Experiment
from launch.cells import Cell
from transformer import flags, matching, spec
from transformer.config import PRESETS, SETTINGS, Config, config_hash, resolve, widths
from transformer.errors import UserError

_MOST_SEEDS = 10_000
_FAR = 0.1  # share of a budget; further off is another comparison


def define_flags(name: str, vary: str, baseline: str, match: str, **defaults: object) -> None:
  """The flags of an experiment that compares values of one setting over paired seeds.

  It runs the pilot's shape with these defaults unless asked otherwise: seconds a cell.
  """
  pace = {'train.checkpoint_every': 200, 'train.log_every': 20}
  lab.define_flags(name, **PRESETS['pilot'] | pace | defaults)
  parts = "values to compare, separated by commas, or by ';' if there is one; all: every variant"
  flags.script_flag('str', 'vary', vary, parts)
  flags.script_flag('str', 'baseline', baseline, 'the value that the others are compared with')
  flags.script_flag('str', 'seeds', '0..3', "paired seeds: '0..3' (both included) or '0,2,5'")
  flags.script_flag('str', 'match', match, 'budget held equal: params | active | flops | none')


def experiment(
  name: str,
  question: str,
  variable: str,
  config_of: Callable[[Config, str, int], Config],
  absorb: str = 'd_ff',
  held: str = '',
  apart: Collection[str] = (),
) -> Experiment:
  """The experiment the comparison flags ask for.

  variable: the setting that varies, or a section of them where it takes several.
  config_of(asked, value, budget): the resolved config of one value, from what the flags ask of all;
  `budget` is what --match counts of the value `held`, by default the baseline; 0 for the value as
  it is. absorb: what config_of lets give way for the budget. apart: values that are matched in
  something else, and so may be off it.
  """
  asked = flags.asked()
  for taken, instead in ((variable, '--vary'), ('seed', '--seeds')):
    if taken in FLAGS and FLAGS[taken].present:
      raise UserError(f'--{taken}: is varied by this experiment; use {instead}')
  if FLAGS.match not in (*matching.BUDGETS, 'none'):
    raise UserError(f'--match={FLAGS.match}: choose from {", ".join(matching.BUDGETS)}, none')
  found = values(variable)
  baseline = FLAGS.baseline or found[0]
  if baseline not in found:
    raise UserError(f'--baseline={baseline}: is not among --vary={FLAGS.vary}')
  base = config_of(asked, baseline, 0)
  budget = 0
  if FLAGS.match != 'none':
    budget = matching.BUDGETS[FLAGS.match](config_of(asked, held or baseline, 0))
  if absorb == 'd_ff' and not base.ffn.d_ff:
    absorb = 'd_model'  # as `replaced` does
  seeds = parse_seeds(FLAGS.seeds)
  configs = {value: config_of(asked, value, budget) for value in found}
  _refuse_twins(configs)
  for value, config in configs.items() if budget else ():
    off = matching.BUDGETS[FLAGS.match](config) / budget - 1
    if abs(off) > _FAR and value not in apart:
      raise UserError(
        f'--match={FLAGS.match}: {value} comes no nearer to the budget than {off:+.0%}; lower '
        '--ffn.multiple_of, or compare at --match=none'
      )
  cells = [
    Cell(f'{value}-seed{seed}', value, config.replace(seed=seed))
    for value, config in configs.items()
    for seed in seeds
  ]
  matched = dict(match=FLAGS.match, budget=budget, absorb=absorb if budget else '')
  matched['apart'] = [value for value in found if budget and value in apart]
  return Experiment(name, question, asked, base, cells, variable, baseline, **matched)


def values(variable: str) -> list[str]:
  """The values of --vary, each once; 'all': every variant with its default arguments."""
  text = FLAGS.vary
  found = list(dict.fromkeys(spec.split(text)))
  if found == ['all']:
    found = _every(variable)
  if not found:
    raise UserError(f'--vary={text}: names no value of {variable}')
  return found


def _every(variable: str) -> list[str]:
  """All variants of a slot that stand without arguments, or all choices of a setting."""
  if variable not in spec.slots():
    declared = SETTINGS.get(variable)
    choices = declared and declared.metadata['choices']
    choices = ('false', 'true') if declared and declared.type == 'bool' else choices
    if not choices:
      raise UserError(f'--vary=all: {variable} has no list of values; name some')
    return list(choices)

  def plain(field: dataclasses.Field) -> bool:  # product(…) of two activations is one of many
    return field.default is not dataclasses.MISSING and not field.metadata.get('slot')

  variants = spec.variants(variable).items()
  return [name for name, declared in variants if all(map(plain, dataclasses.fields(declared)))]


def _refuse_twins(configs: dict[str, Config]) -> None:
  """Two names of one thing would be compared as two; patterns of widths are told by the widths."""
  found: dict[tuple, str] = {}
  for value, config in configs.items():
    plain = config.replace(**{'ffn.ratios': '', 'ffn.encoder_ratios': ''})
    key = (config_hash(plain), *widths(config), *widths(config, encoder=True))
    other = found.setdefault(key, value)
    if other != value:
      raise UserError(f'--vary={FLAGS.vary}: {other} and {value} are the same; leave one out')


def replaced(variable: str) -> Callable[[Config, str, int], Config]:
  """What `experiment` takes for a plain setting: its value put in, and fitted."""

  def config_of(asked: Config, value: str, budget: int) -> Config:
    return fitted(asked.replace(**{variable: parsed(variable, value)}), budget)

  return config_of


def fitted(asked: Config, budget: int) -> Config:
  """What is asked with d_ff, without an FFN d_model, solved for the budget; 0: as it is."""
  config = resolve(asked)
  if not budget or matching.BUDGETS[FLAGS.match](config) == budget:
    return config
  match = matching.match_d_ff if config.ffn.d_ff else matching.match_width
  return match(asked, budget, FLAGS.match)


def parsed(variable: str, text: str) -> object:
  """A value of --vary in the type of its setting; ranges are for the setting to check."""
  kind = SETTINGS[variable].type
  try:
    if kind == 'bool':
      return {'true': True, 'false': False}[text.lower()]
    return {'int': int, 'float': float, 'str': str}[kind](text)
  except (KeyError, ValueError):
    wanted = 'true or false' if kind == 'bool' else f'of type {kind}'
    raise UserError(f'--vary={FLAGS.vary}: {text!r} should be {wanted}, as {variable} is') from None


def parse_seeds(text: str) -> list[int]:
  """'0..3' -> [0, 1, 2, 3]; '0,2..4' -> [0, 2, 3, 4]."""
  seeds: list[int] = []
  for part in text.split(','):
    first, dots, last = part.strip().partition('..')
    if not first.isdecimal() or (dots and not last.isdecimal()):
      raise UserError(f"--seeds={text}: expected numbers and ranges, as in '0..3' or '0,2,5'")
    if int(last or first) - int(first) >= _MOST_SEEDS:
      raise UserError(f'--seeds={text}: {part.strip()} is more than {_MOST_SEEDS:,} seeds')
    seeds += range(int(first), int(last or first) + 1)
  if not seeds or len(set(seeds)) < len(seeds):
    raise UserError(f'--seeds={text}: is empty or names a seed twice')
  return seeds
