"""Parameters and FLOPs of a Transformer by part, before any array exists.

python -m experiments.describe --preset=gpt2
python -m experiments.describe --model.d_model=512 --ffn.activation=swiglu --ffn.ratio=2.667
"""

from __future__ import annotations

import json
from math import prod

from transformer import axes, count, flags
from transformer.config import Config, resolve

flags.define()
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object instead of tables')


def main() -> int:
  asked = flags.config()
  facts = describe(asked, resolve(asked))
  if JSON.value:
    print(json.dumps(facts, indent=2))
  else:
    _print(facts)
  return 0


def describe(asked: Config, config: Config) -> dict:
  """What `config`, resolved from `asked`, holds and costs; plain JSON."""
  wanted = asked.ffn.d_ff or asked.ffn.ratio * asked.model.d_model
  by_part, flops = count.params_by_part(config), count.flops_by_part(config)
  return {
    'params': count.params(config),
    'params_by_part': by_part,
    'ffn_share_of_block': by_part['ffn'] / (by_part['ffn'] + by_part['attention']),
    'd_ff': {'target': wanted, 'achieved': config.ffn.d_ff, 'ratio': config.ffn.ratio},
    'flops_per_token': count.flops_per_token(config),
    'forward_flops_per_token_by_part': flops,
    'train_tokens': count.train_tokens(config),
    'train_flops': count.train_flops(config),
    'state_bytes': 12 * count.params(config),
    'tensors': [
      {'path': path, 'letters': axes.letters(path), 'shape': shape, 'params': prod(shape)}
      for path, shape in count.shapes(config).items()
    ],
    'config': config.to_json(),
  }


def _print(facts: dict) -> None:
  from rich.console import Console
  from rich.table import Table

  out = Console()
  tensors = Table('tensor', title='Parameters', title_justify='left')
  for heading in ('letters', 'shape', 'parameters'):
    tensors.add_column(heading, justify='left' if heading == 'letters' else 'right')
  for row in facts['tensors']:
    shape = ' × '.join(f'{n:,}' for n in row['shape'])
    tensors.add_row(row['path'], row['letters'], shape, f'{row["params"]:,}')
  out.print(tensors)
  used = {letter for row in facts['tensors'] for letter in row['letters']}
  out.print('; '.join(f'{k}: {axes.LETTERS[k].meaning}' for k in axes.LETTERS if k in used))
  out.print()
  _print_parts(out, 'Parameters by part', facts['params_by_part'])
  _print_parts(out, 'Forward FLOPs per token', facts['forward_flops_per_token_by_part'])
  d_ff = facts['d_ff']
  out.print(
    f'd_ff {d_ff["achieved"]:,} for a target of {d_ff["target"]:,.6g}, ratio {d_ff["ratio"]:.4g}; '
    f'the FFN holds {facts["ffn_share_of_block"]:.1%} of a block\n'
    f'training: {facts["flops_per_token"]:,} FLOPs a token, {facts["train_tokens"]:,} tokens, '
    f'{facts["train_flops"]:.3g} FLOPs in all\n'
    f'parameters and AdamW moments in float32: {facts["state_bytes"] / 2**20:,.1f} MiB'
  )


def _print_parts(out, title: str, parts: dict[str, int]) -> None:
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
