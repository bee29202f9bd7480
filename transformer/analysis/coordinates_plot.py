"""The picture of the coordinate check: mean |x| against width, standard beside muP."""

from __future__ import annotations

import numpy as np

from transformer.analysis.theme import Plot, Theme, both

_SHOWN = {
  'scores': 'attention scores',
  'hidden': 'FFN, hidden layer',
  'down': 'FFN, output',
  'stream_ffn': 'residual stream',
  'change of logits': 'change of logits',
}
_AXES = {'model.d_model': 'd_model', 'ffn.d_ff': 'd_ff, d_model fixed'}
CAPTION = (
  'Mean |x| before training and after each step, pale to dark, on one batch of random tokens. '
  'Lines stay flat under a rule by which rates hold for any width.'
)


def draw(sweeps: list[dict]) -> Plot:
  """A row for each result of `transformer.coordinates.coordinates`."""
  return both('coordinates', CAPTION, _draw, sweeps)


def _draw(figure, sweeps: list[dict], theme: Theme) -> None:
  colours = {'standard': theme.hues[1], 'mup': theme.hues[0]}
  figure.set_size_inches(2.5 * len(_SHOWN) + 0.6, 2.6 * len(sweeps) + 0.9)
  figure.suptitle(CAPTION, x=0.01, ha='left', size=10)
  panels = figure.subplots(len(sweeps), len(_SHOWN), squeeze=False)
  for row, found in zip(panels, sweeps, strict=True):
    for ax, (name, title) in zip(row, _SHOWN.items(), strict=True):
      for rule, colour in colours.items():
        if by_step := found['sizes'][rule].get(name):
          _lines(ax, found['widths'], by_step, colour)
      ax.set_title(title)
      ax.set_xscale('log', base=2)
      ax.set_yscale('log', base=2)
      ax.yaxis.set_major_formatter('{x:.3g}')
      ax.set_xticks(found['widths'], [str(w) for w in found['widths']], size=9)
      ax.minorticks_off()
      ax.set_xlabel(_AXES[found['setting']])
    row[0].set_ylabel('mean |x|')
  for y, (rule, colour) in enumerate(colours.items()):
    panels[0, 0].text(0.04, 0.95 - 0.1 * y, {'mup': 'muP'}.get(rule, rule), color=colour, va='top',
                      transform=panels[0, 0].transAxes, weight='bold', size=9)  # fmt: skip


def _lines(ax, widths: list[int], by_step: list[list[float]], colour: str) -> None:
  for shade, sizes in zip(np.linspace(0.25, 1.0, len(by_step)), by_step, strict=True):
    if any(sizes):
      ax.plot(widths, sizes, 'o-', color=colour, alpha=shade, lw=1.4, ms=3, mew=0)
