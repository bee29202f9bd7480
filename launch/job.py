"""What an engine is asked to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformer.config import LaunchConfig


@dataclass(frozen=True)
class Job:
  """Cells of one folder that a cluster is to run.

  cells: names of folders below <workdir>/cells, each with its config.json, those that share a
  compiled program side by side. report: whether to write the report once all have ended.
  """

  workdir: Path
  cells: tuple[str, ...]
  launch: LaunchConfig
  report: bool
