"""Which value of a setting is best? Any setting that changes a result, by the same statistics.

  python -m experiments.compare --setting=model.norm_placement --vary=all
  python -m experiments.compare --setting=model.norm --vary='rmsnorm,layernorm,none'
  python -m experiments.compare --setting=optim.schedule --vary='cosine;linear;wsd(decay=0.3)'
  python -m experiments.compare --setting=optim.learning_rate --vary=0.004,0.008,0.016
  python -m experiments.compare --setting=data.tokenizer --vary='byte;bpe(vocab_size=1024)'

Where a value has parameters or FLOPs of its own, as a vocabulary has, d_ff gives way (--match).
Without --baseline the first value is it. Tokenizers are judged in bits per byte of text, all else
in nats per token. Widths and depth have scripts of their own: experiments.ffn_width and .shape.
"""

from __future__ import annotations

from experiments import lab, paired
from transformer import flags, spec
from transformer.config import SETTINGS
from transformer.errors import UserError, nearest

paired.define_flags('<setting>', vary='', baseline='', match='params')
SETTING = flags.script_flag('str', 'setting', '', 'what to compare, as in model.norm')

_WIDTHS = ('ffn.ratio', 'ffn.ratios', 'ffn.d_ff')
_TASK = ('model.architecture', 'loss.mask_rate')  # what is to be predicted, and from what
_TEXT = (  # what decides which text is held out, and where there is none which tokens
  *('data.source', 'data.held_out', 'data.text_field', 'data.group_field'),
  'model.vocab_size',
)


def main() -> int:
  setting = SETTING.value.lstrip('-')
  _check(setting)
  if not lab.FLAGS.vary:
    raise UserError(f'--vary=: is empty; name values of {setting}, or all')
  if not lab.FLAGS['workdir'].present:
    lab.FLAGS.workdir = f'runs/{setting}'
  question = f'Which {setting} gives the lowest held-out loss?'
  return lab.run(paired.experiment('compare', question, setting, paired.replaced(setting)))


def _check(setting: str) -> None:
  if not setting:
    raise UserError('--setting=: is empty; name what to compare, as in --setting=model.norm')
  if setting not in SETTINGS:
    raise UserError(f'--setting={setting}: no such setting{nearest(setting, SETTINGS)}')
  where = f'--setting={setting}'
  if SETTINGS[setting].metadata['kind'] == 'free':
    raise UserError(f'{where}: changes no result, so there is nothing to compare')
  if setting == 'seed':
    raise UserError(f'{where}: seeds are what each value is averaged over; use --seeds')
  if setting in _WIDTHS and lab.FLAGS.match != 'none':
    raise UserError(f'{where}: is what --match solves for; use experiments.ffn_width')
  if setting in _TEXT:
    raise UserError(
      f'{where}: losses on other text do not compare; run experiments.train once for each, then '
      'experiments.report --by'
    )
  if setting in _TASK:
    raise UserError(f'{where}: losses of other tasks do not compare; use experiments.train')
  if setting == 'data.tokenizer' and lab.FLAGS['model.architecture'].value == 'encoder':
    raise UserError(
      f'{where}: --model.architecture=encoder predicts some tokens only, so that its loss has no '
      'bits per byte, and nats per token of different tokenizers do not compare'
    )
  source = lab.FLAGS['data.source'].value
  if setting == 'data.tokenizer' and not getattr(spec.parse('data.source', source), 'text', True):
    raise UserError(f'{where}: --data.source={source} holds no text to cut into tokens')


if __name__ == '__main__':
  flags.run(main)
