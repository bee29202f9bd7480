"""The course of a search, trial by trial, and how much each setting mattered, as a picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from transformer.analysis import formats
from transformer.analysis.grouping import value_text
from transformer.analysis.results import Results, is_number
from transformer.analysis.theme import Theme


@dataclass(frozen=True)
class Trial:
  """One trial that has ended. loss: held-out; of a pruned one where it was stopped."""

  number: int
  state: str  # complete or pruned
  loss: float
  params: dict


def trials(results: Results) -> list[Trial]:
  """Those with a loss, in order; none where the cells are not a search's."""
  return [
    Trial(t['number'], t['state'], float(t['loss']), t.get('params') or {})
    for t in results.searched.get('told', ())
    if t.get('state') in ('complete', 'pruned') and is_number(t.get('loss'))
  ]


def best(results: Results) -> str:
  """The trial of lowest loss among those that came to their end, in words; '' if there is none."""
  complete = [t for t in trials(results) if t.state == 'complete']
  if not complete:
    return ''
  top = min(complete, key=lambda t: t.loss)
  params = ', '.join(f'{name} {value_text(value)}' for name, value in top.params.items())
  return f'Best of {len(complete)}: trial {top.number}, {formats.loss(top.loss)} at {params}.'


def caption(results: Results) -> str:
  told = results.searched
  states = Counter(t.get('state') for t in told.get('told', ()))
  counts = ', '.join(f'{n} {state}' for state, n in states.items())
  how = f'{told.get("trials")} trials by {told.get("sampler")}, pruned by {told.get("prune")}'
  text = (
    f'Search of {told.get("space")}: {how} ({counts}). Left: loss of each trial; line: the best so '
    'far; crosses: pruned, at the loss they had then.'
  )
  text += f' {best(results)}'.rstrip()
  if told.get('importance'):
    text += (
      ' Right: how much each setting decides whether a trial is among the best quarter '
      '(PED-ANOVA, Watanabe et al. 2023); shares of one, from few trials a rough guide.'
    )
  return text


def draw(figure, results: Results, theme: Theme) -> None:
  importance = results.searched.get('importance') or {}
  figure.set_size_inches(8.4, 3.6)
  axes = figure.subplots(1, 2 if importance else 1, squeeze=False)[0]
  _history(axes[0], results, theme)
  if importance:
    _importance(axes[1], importance, theme)


def _history(ax, results: Results, theme: Theme) -> None:
  found = trials(results)
  complete = [t for t in found if t.state == 'complete']
  pruned = [t for t in found if t.state == 'pruned']
  ax.plot([t.number for t in pruned], [t.loss for t in pruned], 'x', ms=5, color=theme.faint)
  ax.plot([t.number for t in complete], [t.loss for t in complete], 'o', ms=4.5,
          color=theme.hues[0], mew=0)  # fmt: skip
  lowest, so_far = [], float('inf')
  for t in complete:
    so_far = min(so_far, t.loss)
    lowest.append(so_far)
  ax.step([t.number for t in complete], lowest, where='post', color=theme.hues[1], lw=1.6)
  if complete:  # what ran wild must not flatten the rest
    losses = sorted(t.loss for t in found)
    usual = losses[0] + 3 * (losses[len(losses) // 2] - losses[0])
    if losses[-1] > usual > losses[0]:
      ax.set_ylim(losses[0] - 0.06 * (usual - losses[0]), usual)
  ax.set_title('Loss by trial')
  ax.set_xlabel('trial')
  ax.set_ylabel(results.measure.unit)


def _importance(ax, importance: dict[str, float], theme: Theme) -> None:
  rows = sorted(importance.items(), key=lambda item: item[1])
  ax.barh([name for name, _ in rows], [share for _, share in rows], 0.55, color=theme.hues[0])
  for y, (_, share) in enumerate(rows):
    ax.annotate(f'{share:.2f}', (share, y), (4, 0), textcoords='offset points', va='center')
  ax.set_title('What decides')
  ax.set_xlabel('share')
  ax.set_xlim(0, 1.15 * max(1e-9, rows[-1][1]))
  ax.grid(axis='y', visible=False)
