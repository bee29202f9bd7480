"""The letter table: one rule a parameter, and how dimensions are shared out over a mesh."""

from __future__ import annotations

import pytest

from tests import battery
from transformer import axes, count, plugin, spec
from transformer.config import PRESETS, Config, resolve
from transformer.errors import UserError

ODD = {  # between them they have every kind of parameter
  'gated': {
    'model.norm': 'layernorm',
    'model.bias': True,
    'model.qk_norm': True,
    'model.positions': 'learned',
    'model.logits_bias': True,
    'model.tied': False,
    'ffn.bias': True,
    'ffn.hidden_layers': 2,
    'ffn.activation': 'product(prelu, swish)',
  },
  'pattern': {'ffn.ratios': '1,2', 'model.num_kv_heads': 1, 'model.positions': 'relative'},
  'shared': {'ffn.shared': True, 'ffn.activation': 'prelu', 'model.norm_placement': 'sandwich'},
  'experts': {
    'moe.experts': 4,
    'moe.router': 'bias',
    'moe.shared_experts': 2,
    'ffn.bias': True,
    'ffn.hidden_layers': 2,
    'ffn.activation': 'product(prelu, swish)',
  },
  'hash': {'moe.experts': 4, 'moe.router': 'hash(balanced=True)'},
  'slots': {'moe.experts': 4, 'moe.router': 'soft', 'model.architecture': 'encoder'},
  'encoder': {
    'model.architecture': 'encoder',
    'model.norm': 'layernorm',
    'model.embedding_norm': True,
    'model.token_types': 2,
    'model.head': 'transform',
  },
  'encoder_decoder': {
    'model.architecture': 'encoder_decoder',
    'model.positions': 'learned',
    'model.bias': True,
    'model.qk_norm': True,
    'model.shared_source': False,
    'model.v_head_dim': 4,
    'ffn.encoder_ratios': '1,2',
  },
}


@pytest.mark.parametrize('name', [*PRESETS, *ODD])
def test_exactly_one_rule_for_every_parameter(name):
  config = (
    resolve(Config().replace(**PRESETS[name])) if name in PRESETS else battery.tiny(**ODD[name])
  )
  for path, shape in (count.shapes(config) | count.kept(config)).items():
    rule = axes.param(path)  # raises unless one matches
    assert len(axes.letters(path)) == len(shape)
    of_layers = path.startswith(('layers', 'encoder_layers'))
    assert axes.letters(path).startswith('L') == axes.stacked(path) == of_layers
    assert set(axes.letters(path)) <= set(axes.LETTERS)
    assert set(rule.fan_in) < set(rule.letters)
    assert rule.decay == (rule.init == 'normal')  # matrices decay; biases and scales do not


def test_every_rule_is_used():
  used = {
    id(axes.param(path))
    for odd in (battery.tiny(**odd) for odd in ODD.values())
    for path in count.shapes(odd) | count.kept(odd)
  }
  shipped = {path: rule for path, rule in axes.PARAMS.items() if not _is_plugins(path)}
  assert used == {id(rule) for rule in shipped.values()}


def _is_plugins(pattern: str) -> bool:
  return any(pattern.find(f'){name}_') > 0 for name in plugin.names('ffn.activation'))


def test_an_activation_brings_the_rules_of_its_parameters(monkeypatch):
  monkeypatch.setattr(axes, 'PARAMS', dict(axes.PARAMS))
  monkeypatch.setitem(spec._DECLARED, 'ffn.activation', dict(spec.variants('ffn.activation')))
  rule = axes.Param('F', init=2.0)
  bent = spec.declare('ffn.activation', 'bent')(type('Bent', (), {'parameters': {'knee': rule}}))
  for leaf in ('bent_knee', 'middle_bent_knee', 'gate_bent_knee', 'middle_up_bent_knee'):
    assert axes.param(f'layers_2/ffn/{leaf}') is rule
  assert axes.letters('layers_2/ffn/bent_knee') == 'LF'
  assert axes.letters('ffn/bent_knee') == 'F'  # of one FFN for all layers
  assert bent.variant == 'bent'


@pytest.mark.parametrize('path', ['layers/ffn/Dense_0', 'embed', 'layers/ffn/up/kernel', ''])
def test_a_parameter_without_a_rule(path):
  with pytest.raises(KeyError) as e:
    axes.param(path)
  assert e.value.args[0] == f'0 rules in axes.PARAMS match {path!r}; there must be one'


def test_a_parameter_with_two_rules(monkeypatch):
  monkeypatch.setitem(axes.PARAMS, r'ffn/u\w', axes.Param('DF', 'D'))
  with pytest.raises(KeyError, match=r'2 rules in axes\.PARAMS match'):
    axes.param('layers/ffn/up')


@pytest.mark.parametrize(
  ('dims', 'shape', 'mesh', 'parameter', 'expected'),
  [
    ('DF', (16, 24), {'fsdp': 2, 'tensor': 2}, True, (('fsdp',), ('tensor',))),
    ('LDF', (3, 16, 24), {'data': 8}, True, (None, None, None)),
    ('VD', (33, 16), {'fsdp': 2, 'tensor': 2}, True, (None, ('fsdp',))),  # 33 is odd
    ('BTD', (8, 4, 16), {'data': 4, 'fsdp': 2}, False, (('data', 'fsdp'), None, None)),
    ('BTD', (4, 4, 16), {'data': 4, 'fsdp': 2}, False, (('data',), None, None)),
    ('BTD', (6, 4, 16), {'data': 4, 'fsdp': 2}, False, (('fsdp',), None, None)),
    ('BTF', (2, 4, 24), {'data': 2, 'tensor': 4}, False, (('data',), None, ('tensor',))),
    ('LF', (2, 24), {'tensor': 4}, True, (None, ('tensor',))),  # a slope a unit
    ('LFM', (2, 24, 24), {'fsdp': 2, 'tensor': 2}, True, (None, ('tensor',), None)),
    ('LDKH', (2, 16, 2, 4), {'tensor': 2}, True, (None, None, ('tensor',), None)),
    ('LDKH', (2, 16, 1, 4), {'tensor': 2}, True, (None, None, None, None)),  # one head for all
    ('UN', (32, 4), {'fsdp': 2, 'tensor': 2}, True, (None, ('tensor',))),
    ('NN', (4, 4), {'tensor': 2}, True, (('tensor',), None)),  # an axis serves one dimension
    ('BTNH', (4, 4, 3, 8), {'tensor': 2}, False, (None, None, None, None)),
    ('', (), {'data': 2}, False, ()),
  ],
)
def test_partition(dims, shape, mesh, parameter, expected):
  assert axes.partition(dims, shape, mesh, parameter) == expected


def test_partition_wants_a_letter_a_dimension():
  with pytest.raises(ValueError, match='shorter'):
    axes.partition('BTD', (8, 4), {}, False)


@pytest.mark.parametrize(
  ('text', 'mesh'),
  [
    ('', {}),
    ('data:8', {'data': 8}),
    (' data : 4, fsdp:2 ', {'data': 4, 'fsdp': 2}),
    ('tensor:2,data:1', {'tensor': 2, 'data': 1}),
  ],
)
def test_parse_mesh(text, mesh):
  assert list(axes.parse_mesh(text).items()) == list(mesh.items())  # their order is the layout


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('tensr:2', "no axis 'tensr'; did you mean tensor?"),
    ('x:2', "no axis 'x'; choose from data, expert, fsdp, tensor"),
    ('data:2,data:4', 'axis data is given twice'),
    ('data', "'data' should be axis:size, as in data:4"),
    ('data:0', "'data:0' should be axis:size, as in data:4"),
    ('data:-1', "'data:-1' should be axis:size, as in data:4"),
    ('data:2.0', "'data:2.0' should be axis:size, as in data:4"),
    ('data:²', "'data:²' should be axis:size, as in data:4"),
    ('fsdp:2,data:x', "'data:x' should be axis:size, as in data:4"),
  ],
)
def test_bad_meshes(text, message):
  with pytest.raises(UserError) as e:
    axes.parse_mesh(text)
  assert str(e.value) == f'--parallel.mesh={text}: {message}'
