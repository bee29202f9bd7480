"""Every tensor of a Transformer, its parameters, FLOPs and memory, before any array exists.

python -m experiments.describe --preset=gpt2
python -m experiments.describe --preset=vaswani_base --model.v_head_dim=32
python -m experiments.describe --model.d_model=512 --ffn.activation=swiglu --ffn.ratio=2.667
python -m experiments.describe --ffn.ratios='ramp(2,6)' --model.num_kv_heads=2
python -m experiments.describe --preset=bench --moe.experts=8 --ffn.ratio=2 --moe.layers='every(2)'
python -m experiments.describe --preset=bench --compiled
python -m experiments.describe --model.num_layers=2 --coordinates

With --compiled it also compiles the training step for the devices at hand, without making an array,
and tells its memory by the program's own account.

With --coordinates it also trains the model for a few steps at an eighth to all of its d_model, as
far as heads allow, and of its d_ff, under the standard rule and under muP, and draws how large
activations become: plots/coordinates.png. Heads widen with d_model; of a --model.head_dim that is
given there are more of them instead. A minute or two.
"""

from __future__ import annotations

import dataclasses
import json
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import lab
from transformer import axes, count, flags, memory, tensors
from transformer.config import Config, ratios, resolve, widths

if TYPE_CHECKING:
  from rich.console import Console

flags.define()
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object instead of tables')
COMPILED = flags.script_flag(
  'bool', 'compiled', False, "also compile the step: its memory by the program's own account"
)
COORDINATES = flags.script_flag(
  'bool', 'coordinates', False, 'also draw the coordinate check of muP: plots/coordinates.png'
)
PLOT = Path('plots/coordinates.png')


def main() -> int:
  asked = flags.config()
  lab.say_idle([asked])
  facts = describe(asked, resolve(asked))
  if COMPILED.value:
    facts['compiled'] = compiled(resolve(asked))
  if COORDINATES.value:
    facts['coordinates'] = check_coordinates(asked)
  if JSON.value:
    print(json.dumps(facts, indent=2))
  else:
    _print(facts)
  return 0


def compiled(config: Config) -> dict:
  """Bytes of the compiled step of a resolved config on one device: 'peak', and its 'parts'."""
  from transformer.measure import compiled as of
  from transformer.measure import footprint

  parts = of.memory(footprint.compiled(config))
  return {'peak': parts.pop('peak'), 'parts': parts}


def check_coordinates(asked: Config) -> list[dict]:
  """What `coordinates` finds for d_model and for d_ff; draws it."""
  from rich.console import Console
  from rich.progress import Progress

  from transformer.analysis import coordinates_plot
  from transformer.coordinates import RULES, WIDTHS, coordinates, sweep

  sweeps = {name: widths for name in WIDTHS if (widths := sweep(asked, name))}
  with Progress(transient=True, console=Console(stderr=True)) as progress:
    task = progress.add_task('training', total=sum(map(len, sweeps.values())) * len(RULES))
    found = [
      coordinates(asked, name, widths, watch=lambda: progress.advance(task))
      for name, widths in sweeps.items()
    ]
  PLOT.parent.mkdir(exist_ok=True)
  PLOT.write_bytes(coordinates_plot.draw(found).light)
  return found


def describe(asked: Config, config: Config) -> dict:
  """What `config`, resolved from `asked`, holds and costs; plain JSON."""
  pattern = ratios(asked)
  wanted = asked.ffn.d_ff or sum(pattern) / len(pattern) * asked.model.d_model
  by_part, flops = count.params_by_part(config), count.flops_by_part(config)
  return {
    'params': count.params(config),
    'active_params': count.active_params(config),
    'params_by_part': by_part,
    'ffn_share_of_block': _share(by_part),
    'ffn_share_of_block_flops': _share(flops),
    'd_ff': {'target': wanted, 'achieved': config.ffn.d_ff, 'ratio': config.ffn.ratio},
    'd_ff_by_layer': widths(config),
    'experts': experts(config),
    'looks_ahead': count.looks_ahead(config),
    'flops_per_token': count.flops_per_token(config),
    'forward_flops_per_token_by_part': flops,
    'train_tokens': count.train_tokens(config),
    'train_flops': count.train_flops(config),
    'state_bytes': memory.state(config),
    'activation_bytes': tensors.kept_bytes(config),
    'forward': [dataclasses.asdict(part) for part in tensors.forward(config)],
    'tensors': [
      {'path': path, 'letters': axes.letters(path), 'shape': shape, 'params': prod(shape)}
      for path, shape in count.shapes(config).items()
    ],
    'config': config.to_json(),
  }


def experts(config: Config) -> dict | None:
  """What the mixtures of a resolved config are made of; None where all is dense.

  d_ff: of one expert, as granularity leaves it; a list where layers differ. per_token: experts that
  compute a token, on average. layers: numbers from 0, by stack.
  """
  own = [group for group in count.groups(config) if group.experts]
  if not own:
    return None
  number, used = count.experts(config)
  wide = list(dict.fromkeys(group.d_ff for group in own))
  return {
    'number': number,
    'd_ff': wide[0] if len(wide) == 1 else wide,
    'per_token': used,
    'shared': config.moe.shared_experts,
    'granularity': config.moe.granularity,
    'layers': {
      stack: [g.first + i for g in own if g.stack == stack for i in range(g.size)]
      for stack in count.stacks(config)
    },
  }


def _share(parts: dict[str, float]) -> float:
  """The FFN's, experts and their router included, of what attention and FFN have together."""
  attention = sum(n for part, n in parts.items() if 'attention' in part)
  ffn = sum(parts.get(part, 0) for part in ('ffn', 'router', 'experts', 'shared experts'))
  return ffn / (attention + ffn)


def _print(facts: dict) -> None:
  from rich.table import Table

  out = lab.console()
  params = Table('tensor', title='Parameters', title_justify='left')
  for heading in ('letters', 'shape', 'parameters'):
    params.add_column(heading, justify='left' if heading == 'letters' else 'right')
  for row in facts['tensors']:
    shape = ' × '.join(f'{n:,}' for n in row['shape'])
    params.add_row(row['path'], row['letters'], shape, f'{row["params"]:,}')
  out.print(params)
  _print_forward(out, facts['forward'])
  inside = [t['name'].rpartition('_')[2] for part in facts['forward'] for t in part['tensors']]
  used = set(''.join([*inside, *(row['letters'] for row in facts['tensors'])]))
  out.print('; '.join(f'{k}: {axes.LETTERS[k].meaning}' for k in axes.LETTERS if k in used))
  out.print()
  _print_parts(out, 'Parameters by part', facts['params_by_part'])
  _print_parts(out, 'Forward FLOPs per token', facts['forward_flops_per_token_by_part'])
  kept = {'activations for backward': facts['activation_bytes']}
  _print_parts(out, 'Memory in bytes', facts['state_bytes'] | kept)
  if found := facts.get('compiled'):
    _print_parts(out, 'Memory of the compiled step, a device, in bytes', found['parts'])
  if found := facts.get('coordinates'):
    _print_slopes(out, found)
  out.print(
    f'{_heads(facts["config"]["model"])}\n{_widths(facts)}\n{_experts(facts)}'
    f'training: {facts["flops_per_token"]:,} FLOPs a token, {facts["train_tokens"]:,} tokens, '
    f'{facts["train_flops"]:.3g} FLOPs in all\n'
    f'memory: parameters, gradient and {facts["config"]["optim"]["name"]} moments in float32; '
    'activations: an estimate, the least a micro-batch keeps; JAX keeps up to about twice as much'
  )


def _print_forward(out: Console, parts: list[dict]) -> None:
  """A block of lines a part, all with the same columns."""
  from rich.table import Table
  from rich.text import Text

  rows = [_row(tensor) for part in parts for tensor in part['tensors']]
  name, shape, made, size = (max(map(len, column)) for column in zip(*rows, strict=True))
  made = min(made, out.width - name - shape - size - 6)
  out.print('Forward pass; on the right MiB kept for backward', style='italic')
  for part in parts:
    times = f' × {part["times"]}' * (part['times'] > 1)
    out.print(Text(part['name'], style='bold'), times, sep='')
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=name, no_wrap=True)
    table.add_column(width=shape, no_wrap=True)
    table.add_column(width=made)
    table.add_column(width=size, justify='right', no_wrap=True)
    for tensor in part['tensors']:
      table.add_row(*map(Text, _row(tensor)))
    out.print(table)
    out.print()


def _row(tensor: dict) -> tuple[str, str, str, str]:
  kept = f'{tensor["bytes"] / 2**20:,.2f}' if tensor['kept'] else ''
  return f'  {tensor["name"]}', str(tuple(tensor['shape'])), tensor['made'], kept


def _print_slopes(out: Console, sweeps: list[dict]) -> None:
  from rich.table import Table

  table = Table('tensor', title=f'Slopes of log size by log width; {PLOT}', title_justify='left')
  columns = []
  for found in sweeps:
    for rule, slopes in found['slopes'].items():
      table.add_column(f'{found["setting"]}\n{rule}', justify='right')
      columns.append(slopes)
  for name in columns[0]:
    table.add_row(name, *(f'{slopes[name]:+.2f}' for slopes in columns))
  out.print(table)


def _heads(model: dict) -> str:
  if not model['num_heads']:
    return 'no attention'
  shared = model['num_kv_heads']
  keys = f', {shared} of keys and values' if shared else ''
  return f'attention: {model["num_heads"]} heads of {model["head_dim"]}{keys}'


def _widths(facts: dict) -> str:
  d_ff, layers = facts['d_ff'], facts['d_ff_by_layer']
  if not any(layers):
    return 'no FFN'
  many = len(set(layers)) > 1
  by_layer = f' (by layer: {", ".join(f"{n:,}" for n in layers)})' if many else ''
  return (
    f'd_ff {d_ff["achieved"]:,}{" on average" * many} for a target of {d_ff["target"]:,.6g}, '
    f'ratio {d_ff["ratio"]:.4g}{by_layer}; '
    f"the FFN holds {facts['ffn_share_of_block']:.1%} of the blocks' parameters and does "
    f'{facts["ffn_share_of_block_flops"]:.1%} of their FLOPs'
  )


def _experts(facts: dict) -> str:
  """A line on experts where there are any."""
  found = facts['experts']
  if not found:
    return ''
  wide = found['d_ff'] if isinstance(found['d_ff'], list) else [found['d_ff']]
  split = f' (one of {wide[0] * found["granularity"]:,} split)' if found['granularity'] > 1 else ''
  shared = f', {found["shared"]} more for all tokens' if found['shared'] else ''
  by_stack = found['layers'].items()
  where = [_layers(at, stack.removesuffix('layers').strip('_')) for stack, at in by_stack if at]
  ahead = 'routing looks ahead, at tokens that the model is to predict\n' * facts['looks_ahead']
  router, dispatch = (facts['config']['moe'][name] for name in ('router', 'dispatch'))
  return (
    f'experts: {found["number"]:,} of d_ff {", ".join(f"{n:,}" for n in wide)}{split}, '
    f'{found["per_token"]:.3g} a token by {router}{shared}, moved by {dispatch}, in '
    f'{" and ".join(where)} (from 0 on); '
    f'{facts["active_params"]:,} of {facts["params"]:,} parameters active\n{ahead}'
  )


def _layers(at: list[int], stack: str) -> str:
  run = len(at) > 2 and at[-1] - at[0] == len(at) - 1
  numbers = f'{at[0]} to {at[-1]}' if run else ', '.join(map(str, at))
  return f'{stack} layer{"s" * (len(at) > 1)} {numbers}'.strip()


def _print_parts(out: Console, title: str, parts: dict[str, float]) -> None:
  from rich.table import Table

  table, total = Table(title=title, title_justify='left'), sum(parts.values())
  table.add_column('part')
  table.add_column('number', justify='right')
  table.add_column('share', justify='right')
  for name, value in parts.items():
    table.add_row(name, f'{value:,}', f'{value / total:.1%}')
  table.add_section()
  table.add_row('all', f'{total:,}', '')
  out.print(table)


if __name__ == '__main__':
  flags.run(main)
