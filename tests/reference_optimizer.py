"""Oracles of optimizers, as the papers write them, in plain NumPy and float64."""

from __future__ import annotations

import numpy as np


def clip(grads: dict, largest: float) -> dict:
  """Gradients by path, scaled down together to a global norm of at most `largest`."""
  norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
  return {path: g * min(1.0, largest / norm) for path, g in grads.items()}


def adam(grad, moments, step, b1, b2, eps):
  """The direction of an Adam step (Kingma & Ba 2015, algorithm 1); step counts from 1.

  moments: (first, second). Returns (direction, moments).
  """
  first = b1 * moments[0] + (1 - b1) * grad
  second = b2 * moments[1] + (1 - b2) * grad**2
  return (first / (1 - b1**step)) / (np.sqrt(second / (1 - b2**step)) + eps), (first, second)


def adamw(value, grad, moments, step, rate, b1, b2, eps, decay):
  """One AdamW step (Loshchilov & Hutter 2019, algorithm 2) of one array; step counts from 1.

  Returns (value, moments).
  """
  direction, moments = adam(grad, moments, step, b1, b2, eps)
  return value - rate * (direction + decay * value), moments


def sgd(grad, total, momentum, nesterov):
  """Sutskever et al. 2013, §2; Nesterov's as Bengio et al. 2013 rewrote it."""
  total = grad + momentum * total
  return (grad + momentum * total if nesterov else total), total


def lion(grad, momentum, b1, b2):
  """Chen et al. 2023, program 1."""
  return np.sign(b1 * momentum + (1 - b1) * grad), b2 * momentum + (1 - b2) * grad


def adafactor(value, grad, moments, step, power, clip, relative, factored):
  """Shazeer & Stern 2018, algorithm 4, and 5 if `relative`, of one matrix or vector.

  moments: (sums of rows, sums of columns), or (second moment,) where not factored.
  """
  b2, square = 1 - step**-power, grad**2 + 1e-30
  now = (square.sum(1), square.sum(0)) if factored else (square,)
  moments = tuple(b2 * old + (1 - b2) * new for old, new in zip(moments, now, strict=True))
  second = np.outer(*moments) / moments[0].sum() if factored else moments[0]
  update = grad / np.sqrt(second)
  update /= max(1.0, np.sqrt(np.mean(update**2)) / clip)
  return (update * max(1e-3, np.sqrt(np.mean(value**2))) if relative else update), moments


def muon(grad, mean, step, beta, nesterov, iterations):
  """Jordan et al. 2024 with optax's corrections of bias, for one matrix (fan_in, fan_out).

  Scaled as in Liu et al. 2025, eq. 4.
  """
  mean = beta * mean + (1 - beta) * grad
  x = mean / (1 - beta**step)
  if nesterov:
    ahead = mean / (1 - beta ** (step + 1))
    x = beta * ahead + (1 - beta) * grad / (1 - beta**step)
  x = x / (np.linalg.norm(x) + 1e-8)
  x = x.T if (tall := x.shape[0] > x.shape[1]) else x
  for _ in range(iterations):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  x = x.T if tall else x
  return 0.2 * np.sqrt(max(x.shape)) * x, mean
