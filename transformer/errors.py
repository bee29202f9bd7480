"""The one exception for mistakes a user can mend, and the helper that suggests what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake the user can mend: one line naming the flag or file, what is wrong, what is right.

  Every script prints it as `error: …` and exits with status 2, without a traceback.
  """


def nearest(name: str, options: Iterable[str]) -> str:
  """Returns '; did you mean …?' for the closest of `options`, else '; choose from …'."""
  options = sorted(options)
  close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
  return f'; did you mean {close[0]}?' if close else f'; choose from {", ".join(options)}'
