"""What is asked becomes what runs: every 0 and blank filled in, every wrong combination refused."""

from __future__ import annotations

import pytest

from transformer.config import Config, config_hash, resolve, widths
from transformer.errors import UserError


def test_resolve_leaves_nothing_to_choose():
  config = resolve(Config())
  assert (config.model.head_dim, config.model.vocab_size) == (64, 4096)
  assert (config.ffn.d_ff, config.ffn.ratio) == (1024, 4.0)
  assert config.optim.learning_rate == 0.003
  assert (config.train.eval_every, config.train.checkpoint_every) == (1000, 1000)
  config = resolve(Config().replace(**{'train.eval_every': 50}))
  assert (config.train.eval_every, config.train.checkpoint_every) == (50, 50)


@pytest.mark.parametrize(
  ('asked', 'd_ff'),
  [
    ({'ffn.ratio': 4.0}, 96),
    ({'ffn.ratio': 8 / 3}, 64),
    ({'ffn.ratio': 8 / 3, 'ffn.multiple_of': 10}, 60),
    ({'ffn.d_ff': 50, 'ffn.ratio': 4.0}, 50),  # d_ff wins
    ({'ffn.d_ff': 50, 'ffn.multiple_of': 16}, 48),
    ({'ffn.d_ff': 1, 'ffn.multiple_of': 16}, 16),  # never 0
    ({'ffn.ratio': 0.001}, 1),
    ({'ffn.ratio': 0.0}, 0),
    ({'ffn.ratio': 0.0, 'ffn.d_ff': 5}, 5),
    ({'ffn.ratios': '2,4', 'ffn.ratio': 7.0}, 72),  # the mean
    ({'ffn.ratios': 'ramp(1,4)'}, 60),
    ({'ffn.ratios': '0,0,8', 'ffn.d_ff': 33}, 33),
  ],
)
def test_d_ff(asked, d_ff):
  config = resolve(Config().replace(**{'model.d_model': 24} | asked))
  assert (config.ffn.d_ff, config.ffn.ratio) == (d_ff, d_ff / 24)


@pytest.mark.parametrize(
  ('ratios', 'changes', 'expected'),
  [
    ('', {}, [96] * 6),
    ('4', {}, [96] * 6),
    ('2,4', {}, [48, 96] * 3),
    (' 2, 4 ,0 ', {}, [48, 96, 0] * 2),
    ('ramp(1,6)', {}, [24, 48, 72, 96, 120, 144]),
    ('ramp(6, 1)', {}, [144, 120, 96, 72, 48, 24]),
    ('ramp(0,5)', {}, [0, 24, 48, 72, 96, 120]),
    ('ramp(1,5)', {'model.num_layers': 1}, [72]),  # their mean
    ('ramp(0,4)', {'model.num_layers': 2}, [0, 96]),
    ('1,3', {'ffn.d_ff': 50}, [25, 75] * 3),  # d_ff is the mean of the layers
    ('1,3', {'ffn.multiple_of': 16}, [32, 64] * 3),  # 24 and 72, each to the nearest
    ('1,3', {'ffn.d_ff': 1}, [1, 2] * 3),  # .5 and 1.5; never 0 where a ratio is not
    ('1e-9,1', {'ffn.d_ff': 12}, [1, 24] * 3),
  ],
)
def test_widths_of_layers(ratios, changes, expected):
  asked = {'model.d_model': 24, 'ffn.ratios': ratios} | changes
  config = resolve(Config().replace(**asked))
  assert widths(config) == expected
  assert resolve(config) == config


def test_blanks_in_a_pattern_make_no_other_run():
  one, other = (resolve(Config().replace(**{'ffn.ratios': r})) for r in ('2,4', ' 2, 4'))
  assert config_hash(one) == config_hash(other) != config_hash(resolve(Config()))


@pytest.mark.parametrize(
  ('heads', 'kv_heads', 'resolved'),
  [(4, 0, 0), (4, 4, 0), (4, 2, 2), (4, 1, 1), (1, 1, 0), (0, 0, 0)],
)
def test_key_and_value_heads(heads, kv_heads, resolved):
  """As many as queries is the default by another name, and the same run."""
  asked = {'model.num_heads': heads, 'model.num_kv_heads': kv_heads, 'model.positions': 'none'}
  config = resolve(Config().replace(**asked))
  assert config.model.num_kv_heads == resolved
  assert config.model.head_dim == (256 // heads if heads else 0)
  assert resolve(config) == config


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'model.num_heads': 3},
      '--model.num_heads=3: does not divide --model.d_model=256; choose a divisor or set '
      '--model.head_dim',
    ),
    (
      {'model.head_dim': 5},
      '--model.positions=rotary: needs an even head width, not 5',
    ),
    (
      {'model.num_kv_heads': 3},
      '--model.num_kv_heads=3: does not divide --model.num_heads=4',
    ),
    (
      {'model.num_kv_heads': 8},
      '--model.num_kv_heads=8: does not divide --model.num_heads=4',
    ),
    (
      {'model.bias': True, 'model.qkv_bias': True},
      '--model.qkv_bias: --model.bias has them all; leave one of them out',
    ),
    *(
      (
        {'model.num_heads': 0, 'model.positions': positions},
        f'--model.positions={positions}: acts in attention, and --model.num_heads=0 has none; '
        'try sinusoidal, learned or none',
      )
      for positions in ('rotary', 'relative', 'alibi')
    ),
    (
      {'model.num_heads': 0, 'model.positions': 'none', 'ffn.ratio': 0.0},
      '--ffn.ratio=0: and --model.num_heads=0 leave nothing in a block',
    ),
    (
      {'model.num_heads': 0, 'model.positions': 'none', 'ffn.ratios': '2,0,4'},
      '--ffn.ratios=2,0,4: and --model.num_heads=0 leave nothing in a block',
    ),
    (
      {'ffn.shared': True, 'ffn.ratios': '2,4'},
      '--ffn.shared: needs one width, above 0, in all layers',
    ),
    (
      {'ffn.shared': True, 'ffn.ratio': 0.0},
      '--ffn.shared: needs one width, above 0, in all layers',
    ),
    *(
      (
        {'ffn.ratios': text},
        f"--ffn.ratios={text}: should be numbers from 0 on, '2,4,8,4' or 'ramp(2,6)'",
      )
      for text in (
        '2,x',
        '2,-1',
        '2,,4',
        'nan',
        '1e9',
        '0,0',
        'ramp(2)',
        'ramp(1,2,3)',
        'ramp(0,0)',
      )
    ),
    (
      {'ffn.ratios': '2,4,8,4'},
      '--ffn.ratios=2,4,8,4: 4 ratios do not divide --model.num_layers=6',
    ),
    (
      {'model.d_model': 15, 'model.num_heads': 3, 'model.positions': 'sinusoidal'},
      '--model.positions=sinusoidal: needs an even d_model, not 15',
    ),
    (
      {'model.vocab_size': 300},
      "--model.vocab_size=300: below the tokenizer's 4096; leave it 0 or set --data.tokenizer",
    ),
    (
      {'parallel.mode': 'pmap', 'parallel.mesh': 'data:8'},
      '--parallel.mesh: is not for --parallel.mode=pmap; leave one of them out',
    ),
    ({'train.accumulate': 3}, '--data.batch_size=16: not divisible by --train.accumulate=3'),
    ({'parallel.mesh': 'dat:1'}, "--parallel.mesh=dat:1: no axis 'dat'; did you mean data?"),
    (
      {'model.architecture': 'encoder_decoder', 'model.num_heads': 0, 'model.positions': 'none'},
      '--model.num_heads=0: a decoder reads its source by attention; give it heads',
    ),
    *(
      (
        {'model.head': 'transform', 'ffn.activation': activation},
        f'--model.head=transform: uses --ffn.activation, and {activation} is gated or has '
        'parameters; take a plain one',
      )
      for activation in ('swiglu', 'prelu', 'product(silu,tanh)')
    ),
    *(
      (
        {'model.architecture': kind, 'model.positions': 'relative(buckets=3)'},
        '--model.positions=relative(buckets=3): an encoder needs 4 buckets or more, half of them '
        'for keys ahead',
      )
      for kind in ('encoder', 'encoder_decoder')
    ),
    (
      {'model.architecture': 'encoder', 'model.vocab_size': 4096},
      "--model.vocab_size=4096: below the tokenizer's 4097 with the mask; leave it 0 or set "
      '--data.tokenizer',
    ),
    (
      {'model.architecture': 'encoder', 'data.mask_token': 4096},
      '--data.mask_token=4096: is no id of a vocabulary of 4096',
    ),
    *(
      (
        {'model.architecture': 'encoder_decoder', 'ffn.shared': True} | own,
        '--ffn.shared: is one FFN for encoder and decoder; leave --ffn.encoder_… out',
      )
      for own in ({'ffn.encoder_ratios': '2'}, {'ffn.encoder_activation': 'relu'})
    ),
    *(
      (
        {'model.architecture': 'encoder_decoder', 'ffn.encoder_ratios': text},
        f"--ffn.encoder_ratios={text}: should be numbers from 0 on, '2,4,8,4' or 'ramp(2,6)'",
      )
      for text in ('x', '2,-1', 'ramp(2)', '1e7')
    ),
    (
      {'model.architecture': 'encoder_decoder', 'ffn.encoder_ratios': '2,4,8,4'},
      '--ffn.encoder_ratios=2,4,8,4: 4 ratios do not divide --model.num_layers=6',
    ),
    (
      {'model.architecture': 'encoder_decoder', 'model.num_encoder_layers': 4}
      | {'ffn.encoder_ratios': '1,2,3'},
      '--ffn.encoder_ratios=1,2,3: 3 ratios do not divide --model.num_encoder_layers=4',
    ),
    (
      {'model.architecture': 'encoder_decoder', 'model.num_encoder_layers': 4}
      | {'ffn.ratios': '1,2,3'},
      '--ffn.ratios=1,2,3: 3 ratios do not divide --model.num_encoder_layers=4',
    ),
    (
      {'model.architecture': 'encoder_decoder', 'ffn.encoder_activation': 'swigul'},
      "--ffn.encoder_activation=swigul: no variant 'swigul'; did you mean swiglu?",
    ),
    (
      {'optim.schedule': 'cosin'},
      "--optim.schedule=cosin: no variant 'cosin'; did you mean cosine?",
    ),
  ],
)
def test_resolve_refuses(changes, message):
  asked = Config().replace(**changes)
  with pytest.raises(UserError) as e:
    resolve(asked)
  assert str(e.value) == message


def test_what_acts_on_an_absent_part_makes_no_other_model():
  """Also the part itself is still heard where it is there: the negative control."""
  without_ffn = {'ffn.ratio': 0.0}
  idle = {'ffn.bias': True, 'ffn.activation': 'relu', 'model.parallel_branches': True}
  plain, other = (resolve(Config().replace(**c)) for c in (without_ffn, without_ffn | idle))
  assert plain == other
  without_heads = {'model.num_heads': 0, 'model.positions': 'learned'}
  idle = {'model.qk_norm': True, 'model.num_kv_heads': 2, 'model.head_dim': 8}
  plain, other = (resolve(Config().replace(**c)) for c in (without_heads, without_heads | idle))
  assert plain == other
  assert resolve(Config().replace(**idle)) != resolve(Config())


def test_exact_multiples_of_a_pattern_come_out_as_asked():
  """d_model 256 and 384; the mean, 384 and 576, is a multiple of neither step."""
  for d_model, step, expected in ((256, 256, [256, 512]), (384, 128, [384, 768])):
    asked = {'model.d_model': d_model, 'model.num_layers': 2, 'ffn.ratios': '1,2'}
    config = resolve(Config().replace(**asked, **{'ffn.multiple_of': step}))
    assert widths(config) == expected
    assert resolve(config) == config


def test_data_settings_that_nothing_reads_make_no_other_run():
  def hash_of(**changes):
    return config_hash(
      resolve(Config().replace(**{k.replace('__', '.'): v for k, v in changes.items()}))
    )

  assert hash_of(data__text_field='body') == hash_of()
  rows = dict(data__source='jsonl:a.jsonl')
  assert hash_of(**rows, data__text_field='body') != hash_of(**rows)  # negative control
  ids = dict(data__source='synthetic', model__vocab_size=64)
  assert hash_of(**ids, data__tokenizer='byte') == hash_of(**ids)
  assert hash_of(data__tokenizer='byte') != hash_of()
