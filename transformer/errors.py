"""The one exception for mistakes a user can mend, and the helper that suggests what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_FEW = 40  # names that are still read


class UserError(Exception):
  """A mistake the user can mend: one line naming the flag or file, what is wrong, what is right.

  Every script prints it as `error: …` and exits with status 2, without a traceback.
  """


def nearest(name: str, options: Iterable[str]) -> str:
  """Returns '; did you mean …?' for the closest of `options`, else '; choose from …' if few."""
  options = sorted(options)
  lower = {option.lower(): option for option in options}
  close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
  if close:
    return f'; did you mean {lower[close[0]]}?'
  return f'; choose from {", ".join(options)}' if len(options) <= _FEW else '; --help lists them'
