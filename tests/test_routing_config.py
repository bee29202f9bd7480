"""What --moe.* come to, and every mistake in them its one line."""

from __future__ import annotations

import pytest

from tests import battery
from transformer.config import Config, resolve, routing
from transformer.errors import UserError

DECODER = {'model.architecture': 'decoder'}
BOTH = {'model.architecture': 'encoder_decoder', 'model.num_encoder_layers': 3}


def tiny(**changes: object) -> Config:
  """Two layers, sequences of eight tokens, four experts."""
  return battery.tiny(**{'moe.experts': 4} | changes)


def error(changes: dict) -> str:
  with pytest.raises(UserError) as e:
    tiny(**changes)
  return str(e.value)


MISTAKES = {
  'k above the number of experts': (
    {'moe.router': 'topk(k=5)'},
    '--moe.router=topk(k=5): k=5 is above --moe.experts=4; lower it',
  ),
  'of each kind with a k': (
    {'moe.router': 'hash(k=5)'},
    '--moe.router=hash(k=5): k=5 is above --moe.experts=4; lower it',
  ),
  'k above it, both split': (
    {'moe.router': 'bias(k=5)', 'moe.granularity': 2},
    '--moe.router=bias(k=5): k=5 is above --moe.experts=4; lower it',
  ),
  'a weight that is always 1': (
    {'moe.router': 'topk(k=1)'},
    '--moe.router=topk(k=1): the one weight is always 1, so the router learns nothing; take '
    'switch, or topk(k=1, renormalise=False)',
  ),
  'the same after the choice': (
    {'moe.router': 'topk(k=1, score=after, renormalise=False)'},
    '--moe.router=topk(k=1, score=after, renormalise=False): the one weight is always 1, so the '
    'router learns nothing; take switch, or topk(k=1, renormalise=False)',
  ),
  'the same beside a bias': (
    {'moe.router': 'bias(k=1)'},
    '--moe.router=bias(k=1): the one weight is always 1, so the router learns nothing; take '
    'switch, or bias(k=1, renormalise=False)',
  ),
  'no such router': (
    {'moe.router': 'topp'},
    "--moe.router=topp: no variant 'topp'; did you mean topk?",
  ),
  'no such score': (
    {'moe.router': 'bias(score=after)'},
    "--moe.router=bias(score=after): score: no choice 'after'; choose from sigmoid, softmax",
  ),
  'capacity that rounds to nothing': (
    {'moe.router': 'switch', 'moe.dispatch': 'capacity', 'moe.capacity_factor': 0.4},
    '--moe.capacity_factor=0.4: leaves no place in 4 experts for the 8 tokens of a routing group; '
    'raise it, or --moe.group_size or --data.seq_len',
  ),
  'in evaluation': (
    {'moe.router': 'switch', 'moe.dispatch': 'capacity', 'moe.eval_capacity_factor': 0.4},
    '--moe.eval_capacity_factor=0.4: leaves no place in 4 experts for the 8 tokens of a routing '
    'group; raise it, or --moe.group_size or --data.seq_len',
  ),
  'in small groups': (
    {'moe.router': 'switch', 'moe.dispatch': 'capacity', 'moe.group_size': 2},
    '--moe.capacity_factor=1.25: leaves no place in 4 experts for the 2 tokens of a routing group; '
    'raise it, or --moe.group_size or --data.seq_len',
  ),
  'where experts choose': (
    {'moe.router': 'expert_choice(factor=0.1)', 'moe.allow_noncausal': True},
    '--moe.router=expert_choice(factor=0.1): leaves no place in 4 experts for the 8 tokens of a '
    'routing group; raise it, or --moe.group_size or --data.seq_len',
  ),
  'groups that do not fill sequences': (
    {'moe.group_size': 3},
    '--moe.group_size=3: does not divide sequences of 8 tokens',
  ),
  'experts that the axis does not divide': (
    {'moe.dispatch': 'expert_parallel', 'parallel.mesh': 'data:2,expert:3'},
    '--parallel.mesh=data:2,expert:3: axis expert:3 does not divide the 4 experts of '
    '--moe.experts=4',
  ),
  'the same, split': (
    {'moe.dispatch': 'expert_parallel', 'parallel.mesh': 'expert:3', 'moe.granularity': 2},
    '--parallel.mesh=expert:3: axis expert:3 does not divide the 8 experts of --moe.experts=4 x '
    '--moe.granularity=2',
  ),
  'no axis for experts': (
    {'moe.dispatch': 'expert_parallel'},
    '--moe.dispatch=expert_parallel: needs a mesh with an axis expert, as in '
    '--parallel.mesh=expert:4',
  ),
  'an axis for no experts': (
    {'moe.experts': 0, 'parallel.mesh': 'expert:2'},
    '--parallel.mesh=expert:2: axis expert, and no --moe.experts',
  ),
  'a layer that does not exist': (
    {'moe.layers': '0,2'},
    '--moe.layers=0,2: there is no layer 2; they are 0 to 1',
  ),
  'more layers than there are': (
    {'moe.layers': 'last(3)'},
    '--moe.layers=last(3): should be 1 to 2, the number of layers',
  ),
  'every zeroth': (
    {'moe.layers': 'every(0)'},
    '--moe.layers=every(0): should be 1 to 2, the number of layers',
  ),
  "an encoder's layer": (
    {**BOTH, 'moe.encoder_layers': '3'},
    '--moe.encoder_layers=3: there is no layer 3; they are 0 to 2',
  ),
  'no layer': (
    {'moe.layers': 'none'},
    '--moe.experts=4: no layer has them; see --moe.layers, --ffn.ratio',
  ),
  'layers without a network': (
    {'ffn.ratios': '0,4', 'moe.layers': '0'},
    '--moe.experts=4: no layer has them; see --moe.layers, --ffn.ratio',
  ),
  'what cannot be moved: all': (
    {'moe.router': 'soft', 'moe.dispatch': 'dropless', 'moe.allow_noncausal': True},
    '--moe.dispatch=dropless: cannot move what --moe.router=soft decides (all slots are mixtures); '
    'take one of auto, capacity, expert_parallel',
  ),
  'all, to the oracle': (
    {'moe.router': 'soft(slots=2)', 'moe.dispatch': 'dense', 'moe.allow_noncausal': True},
    '--moe.dispatch=dense: cannot move what --moe.router=soft decides (all slots are mixtures); '
    'take one of auto, capacity, expert_parallel',
  ),
  'what cannot be moved: experts choose': (
    {'moe.router': 'expert_choice', 'moe.dispatch': 'dropless', 'moe.allow_noncausal': True},
    '--moe.dispatch=dropless: cannot move what --moe.router=expert_choice decides (experts '
    'choose); take one of auto, dense, capacity, expert_parallel',
  ),
  'experts that look ahead': (
    {'moe.router': 'expert_choice'},
    '--moe.router=expert_choice: looks at tokens ahead, which a decoder must not; take topk, or '
    '--moe.allow_noncausal to measure it all the same',
  ),
  'slots that do': (
    {'moe.router': 'soft(slots=2)'},
    '--moe.router=soft(slots=2): looks at tokens ahead, which a decoder must not; take topk, or '
    '--moe.allow_noncausal to measure it all the same',
  ),
  'a priority that does': (
    {'moe.dispatch': 'capacity(priority=score)'},
    '--moe.dispatch=capacity(priority=score): looks at tokens ahead, which a decoder must not; '
    'take priority=order, or --moe.allow_noncausal to measure it all the same',
  ),
  "a priority that does in a pair's decoder": (
    {**BOTH, 'moe.dispatch': 'capacity(choice)'},
    '--moe.dispatch=capacity(priority=choice): looks at tokens ahead, which a decoder must not; '
    'take priority=order, or --moe.allow_noncausal to measure it all the same',
  ),
  'one network for all': (
    {'ffn.shared': True},
    '--ffn.shared: is one dense FFN for all layers; leave it out with --moe.experts',
  ),
  'dropout of slots': (
    {'moe.router': 'soft', 'ffn.dropout': 0.1, 'moe.allow_noncausal': True},
    '--ffn.dropout: is of tokens, and slots of --moe.router=soft are none; use --model.dropout',
  ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes(mistake):
  changes, message = MISTAKES[mistake]
  assert error(changes) == message


@pytest.mark.parametrize(
  'text',
  ['', ' ', 'al', 'every', 'every()', 'every(x)', 'last(-1)', '1,', ',1', '1;2', '-1', '1.0'],
)
def test_malformed_patterns(text):
  assert error({'moe.layers': text}) == (
    f'--moe.layers={text.strip()}: expected all, none, every(2), last(4), or numbers from 0 on, as '
    "in '3,5'"
  )


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('all', '111111'),
    ('every(2)', '010101'),
    ('every(4)', '000100'),
    ('every(1)', '111111'),
    ('last(4)', '001111'),
    (' last( 1 ) ', '000001'),
    ('3,5', '000101'),
    ('0', '100000'),
    ('5, 0, 5', '100001'),
  ],
)
def test_which_layers_have_experts(text, expected):
  config = tiny(**{'model.num_layers': 6, 'moe.layers': text})
  assert routing.moe_layers(config) == [c == '1' for c in expected]


@pytest.mark.parametrize(
  ('layers', 'encoder_layers', 'expected'),
  [
    ('all', '', ('111', '11')),
    ('last(1)', '', ('001', '01')),
    ('none', 'all', ('111', '00')),
    ('1', 'none', ('000', '01')),
    ('1', '0,2', ('101', '01')),
  ],
)
def test_both_stacks(layers, encoder_layers, expected):
  config = tiny(**BOTH, **{'moe.layers': layers, 'moe.encoder_layers': encoder_layers})
  found = routing.moe_layers(config, encoder=True), routing.moe_layers(config)
  assert tuple(''.join(str(int(has)) for has in stack) for stack in found) == expected


def test_an_encoder_may_look_ahead():
  """Of a pair, too, where its decoder has no experts."""
  for own in (
    {'model.architecture': 'encoder'},
    {**BOTH, 'moe.layers': 'none', 'moe.encoder_layers': 'all'},
  ):
    assert tiny(**own, **{'moe.router': 'expert_choice'}).moe.router == 'expert_choice'
    assert tiny(**own, **{'moe.dispatch': 'capacity(score)'})


@pytest.mark.parametrize(
  ('changes', 'training', 'evaluation'),
  [
    ({}, 5, 5),  # 1.25 · 2 · 8 / 4
    ({'moe.capacity_factor': 1.2}, 4, 4),  # 4.8
    ({'moe.capacity_factor': 1.2, 'moe.eval_capacity_factor': 1.5}, 4, 6),
    ({'moe.capacity_factor': 100.0}, 8, 8),  # an expert has no more than all tokens
    ({'moe.router': 'switch'}, 2, 2),  # 2.5
    ({'moe.router': 'dense', 'moe.capacity_factor': 0.9}, 7, 7),  # .9 · 4 · 8 / 4 = 7.2
    ({'moe.group_size': 4}, 2, 2),  # 2.5
    ({'moe.granularity': 2}, 5, 5),  # k and E both twice
    ({'moe.router': 'switch', 'moe.capacity_factor': 1.15, 'data.seq_len': 400}, 115, 115),
    ({'moe.router': 'switch', 'moe.capacity_factor': 1.1499, 'data.seq_len': 400}, 114, 114),
    ({'moe.router': 'expert_choice(factor=1.3)'}, 2, 2),  # 2.6
    ({'moe.router': 'expert_choice', 'moe.group_size': 4}, 2, 2),
    ({'moe.router': 'soft'}, 2, 2),  # eight slots in four experts
    ({'moe.router': 'soft(slots=3)'}, 3, 3),
  ],
)
def test_places_of_an_expert(changes, training, evaluation):
  """⌊factor · k · T / E⌋, of the factor as it is written: 1.15 · 400 / 4 is below 115 in binary."""
  config = tiny(**{'moe.dispatch': 'capacity', 'moe.allow_noncausal': True} | changes)
  length = routing.group_length(config, config.data.seq_len)
  found = [routing.capacity(config, length, training) for training in (True, False)]
  assert found == [training, evaluation]


def test_auto_comes_to_what_fits():
  movers = {'topk': 'dropless', 'hash': 'dropless', 'expert_choice': 'capacity', 'soft': 'capacity'}
  for router, mover in movers.items():
    config = tiny(**{'moe.router': router, 'moe.allow_noncausal': True})
    assert (config.moe.dispatch, routing.dispatch(config).variant) == (mover, mover)


def test_counts_of_split_experts():
  config = tiny(**{'moe.granularity': 3, 'moe.router': 'topk(k=2)'})
  assert (routing.experts(config), routing.choices(config)) == (12, 6)
  config = tiny(**{'moe.granularity': 3, 'moe.router': 'dense'})
  assert routing.choices(config) == 12


def test_one_choice_of_split_experts_is_many():
  """Whose weights, adding up to 1, a router can learn."""
  assert routing.choices(tiny(**{'moe.granularity': 2, 'moe.router': 'topk(k=1)'})) == 2


def test_resolving_again_changes_nothing():
  asked = {
    'moe.layers': ' last( 1 )',
    'moe.dispatch': 'capacity',
    'moe.router': 'topk(score=after)',
  }
  config = tiny(**asked)
  assert config.moe.layers == 'last(1)' and config.moe.eval_capacity_factor == 1.25
  assert resolve(config) == config


@pytest.mark.parametrize(
  ('given', 'kept'),
  [
    ('0,0', '0'),
    ('5, 3', '3,5'),
    ('every(1)', 'all'),
    ('0,1,2,3,4,5', 'all'),
    ('every( 2 )', 'every(2)'),
  ],
)
def test_equal_layers_are_written_alike(given, kept):
  asked = Config().replace(**{'moe.experts': 4, 'moe.layers': given})
  assert resolve(asked).moe.layers == kept
