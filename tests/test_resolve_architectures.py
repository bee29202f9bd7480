"""What is asked of an encoder, a decoder and both becomes what runs."""

from __future__ import annotations

import pytest

from transformer.config import PRESETS, Config, config_hash, resolve, widths

BOTH = {'model.architecture': 'encoder_decoder'}


@pytest.mark.parametrize(
  ('architecture', 'changes', 'vocab_size', 'mask_token'),
  [
    ('encoder', {}, 4097, 4096),
    ('encoder', {'model.vocab_size': 5000}, 5000, 4999),  # the last entry, free of the tokenizer's
    ('encoder', {'data.mask_token': 7}, 4096, 7),  # one of the tokenizer's own
    ('encoder', {'data.tokenizer': 'byte'}, 258, 257),
    ('encoder', {'data.source': 'synthetic', 'model.vocab_size': 64}, 64, 63),
    ('decoder', {'data.mask_token': 7}, 4096, -1),
    ('encoder_decoder', {'data.mask_token': 7}, 4096, -1),
  ],
)
def test_a_mask_has_an_entry_of_the_vocabulary(architecture, changes, vocab_size, mask_token):
  config = resolve(Config().replace(**{'model.architecture': architecture} | changes))
  assert (config.model.vocab_size, config.data.mask_token) == (vocab_size, mask_token)
  assert resolve(config) == config


@pytest.mark.parametrize(
  ('changes', 'encoder', 'decoder'),
  [
    ({}, [96] * 2, [96] * 2),
    ({'model.num_encoder_layers': 3}, [96] * 3, [96] * 2),
    ({'ffn.d_ff': 40}, [40] * 2, [40] * 2),
    ({'ffn.ratios': '1,3'}, [24, 72], [24, 72]),
    ({'ffn.ratios': '1,3', 'ffn.d_ff': 40}, [20, 60], [20, 60]),
    ({'ffn.ratios': '1,3', 'model.num_encoder_layers': 4}, [24, 72, 24, 72], [24, 72]),
    ({'ffn.encoder_ratios': '2'}, [48, 48], [96, 96]),
    # of d_model, whatever the decoder's d_ff is
    ({'ffn.encoder_ratios': '2,0', 'ffn.d_ff': 40}, [48, 0], [40, 40]),
    ({'ffn.encoder_ratios': '0'}, [0, 0], [96, 96]),
    ({'ffn.encoder_ratios': '2', 'ffn.ratio': 0.0}, [48, 48], [0, 0]),
    (
      {'ffn.encoder_ratios': 'ramp(1, 3)', 'model.num_encoder_layers': 3, 'ffn.multiple_of': 16},
      [32, 48, 64],
      [96, 96],
    ),
  ],
)
def test_widths_of_an_encoder_beside_a_decoder(changes, encoder, decoder):
  asked = {'model.d_model': 24, 'model.num_layers': 2} | BOTH
  config = resolve(Config().replace(**asked | changes))
  assert widths(config, encoder=True) == encoder
  assert widths(config) == decoder
  assert resolve(config) == config


def test_what_another_architecture_alone_reads_makes_no_other_model():
  source = {
    'model.num_encoder_layers': 3,
    'model.shared_source': False,
    'data.source_len': 32,
    'ffn.encoder_ratios': '2',
    'ffn.encoder_activation': 'relu',
  }
  masks = {'model.token_types': 2, 'data.mask_token': 5, 'loss.mask_rate': 0.3}
  for kind, unheard in (
    ('decoder', source | masks),
    ('encoder', source),
    ('encoder_decoder', masks),
  ):
    plain = resolve(Config().replace(**{'model.architecture': kind}))
    for name, value in unheard.items():
      own = {'model.architecture': kind, name: value}
      assert resolve(Config().replace(**own)) == plain, name
  encoder = {'model.architecture': 'encoder'}  # negative control: each is heard in its own
  for heard, kind in ((source, BOTH), (masks, encoder)):
    for name, value in heard.items():
      one, other = (resolve(Config().replace(**kind | c)) for c in ({}, {name: value}))
      assert config_hash(one) != config_hash(other), name


def test_what_is_spelt_out_makes_no_other_model():
  """The depth, length, width and activation that a blank stands for."""
  spelt = {
    'model.num_encoder_layers': 6,
    'model.v_head_dim': 64,
    'data.source_len': 256,
    'ffn.encoder_activation': 'gelu()',
  }
  for name, value in spelt.items():
    one, other = (resolve(Config().replace(**BOTH | c)) for c in ({}, {name: value}))
    assert one == other, name
  assert (one.data.source_len, one.model.v_head_dim) == (256, 0)


def test_the_activation_of_a_head_is_heard_where_there_is_no_ffn():
  bare = {'ffn.ratio': 0.0, 'ffn.activation': 'relu'}
  assert resolve(Config().replace(**bare)).ffn.activation == 'gelu'
  config = resolve(Config().replace(**bare | {'model.head': 'transform'}))
  assert config.ffn.activation == 'relu'


HASHES = {  # of configs of the releases that knew decoders alone
  'fa88b434': {},
  '558ed5c3': PRESETS['gpt2'],
  'a98c985a': {
    'ffn.activation': 'swiglu',
    'ffn.ratios': '2,4',
    'model.num_kv_heads': 2,
    'model.norm_placement': 'sandwich',
    'model.positions': 'relative(buckets=16)',
    'optim.name': 'lion',
  },
  'd841a84b': {
    'model.num_heads': 0,
    'model.positions': 'learned',
    'ffn.shared': True,
    'data.source': 'synthetic',
    'model.vocab_size': 64,
  },
  '436abdd5': {
    'ffn.ratio': 0.0,
    'model.tied': False,
    'data.tokenizer': 'byte',
    'loss.label_smoothing': 0.1,
    'seed': 3,
  },
}


@pytest.mark.parametrize('name', HASHES)
def test_runs_of_decoders_keep_their_names(name):
  config = resolve(Config().replace(**HASHES[name]))
  assert config_hash(config) == name
  for kind in ('encoder', 'encoder_decoder'):
    changes = {'model.architecture': kind} | ({'model.num_heads': 4} if name == 'd841a84b' else {})
    assert config_hash(resolve(Config().replace(**HASHES[name] | changes))) != name
