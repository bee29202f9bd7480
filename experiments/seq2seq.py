"""Does a Transformer from source to target gain from another FFN in its encoder, or its decoder?

Trains encoder-decoders on pairs of texts and compares FFNs over paired seeds by held-out loss, in
nats per target token; exact match, BLEU and chrF of decoded held-out sources stand beside it. The
pairs are, unless asked otherwise, functions of the standard library and what they do.

  python -m experiments.seq2seq                        16 runs, minutes on two cores
  python -m experiments.seq2seq --data.source=pairs:de-en.tsv --train.steps=5000
  python -m experiments.seq2seq --vary='relu;encoder:geglu,decoder:swiglu' --seeds=0..7
  python -m experiments.seq2seq --vary='relu;encoder:6,decoder:2;encoder:2,decoder:6'
  python -m experiments.seq2seq --vary='relu;encoder:0;decoder:0' --match=none

A value names an activation, a ratio d_ff/d_model, or both by a comma, for both sides or, behind
encoder: and decoder:, for one; what it does not name is as --ffn.activation and --ffn.ratio have
it. At an equal budget the d_ff of the sides it names gives way, of both in proportion: swiglu takes
it from both, encoder:swiglu from the encoder alone, and encoder:6,decoder:2 says the proportion.
"""

from __future__ import annotations

from experiments import lab, paired
from transformer import flags, matching, spec
from transformer.config import Config, resolve
from transformer.errors import UserError

NAME = 'seq2seq'
QUESTION = 'Which FFN, in the encoder or the decoder, gives the lowest held-out loss?'
SIDES = ('encoder', 'decoder')

paired.define_flags(
  NAME,
  vary='relu;swiglu;encoder:swiglu;decoder:swiglu',
  baseline='relu',
  match='params',
  **{
    'model.architecture': 'encoder_decoder',
    'ffn.activation': 'relu',
    'model.dropout': 0.1,
    'data.source_len': 64,
    'data.seq_len': 32,
    'train.steps': 600,
  },
)


def config_of(asked: Config, value: str, budget: int) -> Config:
  """What is asked with the FFNs of a value; the widths of the sides it names meet a budget."""
  named = parsed(value)
  plain = resolve(asked)
  whole = dict.fromkeys(SIDES, plain.ffn.d_ff)
  for side, told in named.items():
    if 'ratio' in told:
      whole[side] = told['ratio'] * plain.model.d_model
  if not budget:
    return _config(asked, named, whole)
  widest = max(whole[side] for side in named)
  if not widest or (len(named) == 1 and any('ratio' in told for told in named.values())):
    raise UserError(
      f'--vary={lab.FLAGS.vary}: {value} leaves no width to give way to the budget; name both '
      'sides, as in encoder:6,decoder:2, or compare at --match=none'
    )
  step = asked.ffn.multiple_of

  def at(units: int) -> Config:
    scaled = {side: units * step * whole[side] / widest for side in named}
    return _config(asked, named, whole | scaled)

  found = matching.nearest(at, budget, lab.FLAGS.match)
  if found is None:
    raise UserError(f'--match={lab.FLAGS.match}: {value} is over the budget of {budget:,}')
  return found


def parsed(value: str) -> dict[str, dict]:
  """Side -> its 'activation' and 'ratio', as far as a value of --vary names them."""
  named: dict[str, dict] = {}
  for part in spec.split(value):
    side, colon, what = (text.strip() for text in part.rpartition(':'))
    if colon and side not in SIDES:
      raise UserError(f'--vary={lab.FLAGS.vary}: {part!r} should begin with encoder: or decoder:')
    try:
      told = {'ratio': float(what)}
    except ValueError:
      told = {'activation': _activation(what)}
    if not 0 <= told.get('ratio', 0) <= 1e6:
      raise UserError(f'--vary={lab.FLAGS.vary}: {what} is no ratio; it should be from 0 on')
    for one in (side,) if colon else SIDES:
      if told.keys() & named.setdefault(one, {}).keys():
        raise UserError(f'--vary={lab.FLAGS.vary}: {value!r} names two of the same for the {one}')
      named[one] |= told
  return named


def _activation(text: str) -> str:
  try:
    return spec.canonical(spec.parse('ffn.activation', text))
  except UserError as e:  # of a flag that the user has not given
    raise UserError(f'--vary={lab.FLAGS.vary}: {str(e).partition(": ")[2]}') from None


def _config(asked: Config, named: dict[str, dict], widths: dict[str, float]) -> Config:
  """What is asked with these activations, and hidden widths in whole steps."""
  step, d_model = asked.ffn.multiple_of, asked.model.d_model
  whole = {side: round(width / step) * step for side, width in widths.items()}
  kinds = {side: named.get(side, {}).get('activation', asked.ffn.activation) for side in SIDES}
  own = whole['encoder'] != whole['decoder']
  return resolve(
    asked.replace(
      **{
        'ffn.activation': kinds['decoder'],
        'ffn.encoder_activation': kinds['encoder'],
        'ffn.d_ff': whole['decoder'],
        'ffn.ratio': whole['decoder'] / d_model,
        'ffn.encoder_ratios': f'{whole["encoder"] / d_model}' if own else '',
      }
    )
  )


def main() -> int:
  for name in ('ffn.ratios', 'ffn.encoder_ratios', 'ffn.encoder_activation'):
    if lab.FLAGS[name].present:
      raise UserError(f'--{name}: is what this experiment varies; use --vary')
  kind = flags.config().model.architecture
  if kind != 'encoder_decoder':
    raise UserError(
      f'--model.architecture={kind}: has not both an encoder and a decoder; use '
      'experiments.activations or experiments.ffn_width'
    )
  return lab.run(paired.experiment(NAME, QUESTION, 'ffn', config_of))


if __name__ == '__main__':
  flags.run(main)
