"""A cluster that runs nothing: what was submitted is a list, and tests say what becomes of it."""

from __future__ import annotations

from launch.job import Job

SUBMITTED: list[Job] = []
CANCELLED: list[dict] = []
NOW: dict[str, str] = {}  # name of cell -> what the cluster says of it; waiting unless told


def plan(job: Job) -> str:
  return f'#!/bin/sh\n# {len(job.cells)} cells of {job.workdir}'


def submit(job: Job) -> dict:
  SUBMITTED.append(job)
  return {'id': len(SUBMITTED), 'names': list(job.cells)}


def states(record: dict) -> dict[str, str]:
  return {name: NOW.get(name, 'waiting') for name in record['names']}


def cancel(record: dict) -> None:
  CANCELLED.append(record)
  NOW.update(dict.fromkeys(record['names'], 'gone'))
