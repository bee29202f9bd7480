"""How a setting is declared: a dataclass field that is also a flag."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
  default: Any,
  help: str,
  *,
  kind: str = 'static',
  low: float | None = None,
  high: float | None = None,
  choices: tuple[str, ...] | None = None,
  slot: str = '',
) -> Any:
  """A dataclass field that is also a flag. slot: of the variant that an argument names."""
  metadata = dict(help=help, kind=kind, low=low, high=high, choices=choices, slot=slot)
  return field(default=default, metadata=metadata)
