"""How far draws from cells of rows are from the softmax: truth and bounds.

A proposal Q draws a cell C (a leaf, or all rows that were scored exactly) in
proportion to q_C, then one of its rows by their exact scores. The softmax P
does the same with Z_C instead of q_C, so the two differ in w_C = Z_C / q_C
alone, and so does what a chain makes of Q. Everything is a logarithm.

With w_C in [a, b] for all cells, whatever their common factor:

  TV(P, Q)              <=  tanh(log(b / a) / 4)
  P / Q                 <=  M = b sum q / sum of lower bounds of Z
  TV of t steps from Q  <=  (1 - 1 / M)^t         (independence Metropolis)

For cells of radius r without exclusions, opened rows or second moments these
are tanh(log(cosh a) / 4) and (1 - 1 / cosh a)^t with a = |x| r.

Source: Monath et al., AISTATS 2023, for the idea of bounds by radius; Mengersen
and Tweedie 1996 for the chain. The formulas are ours: of a uniform row of the
cell, which the paper takes, P / Q <= e^a, much more than cosh a.
"""

from typing import NamedTuple

import jax
from jax import numpy as jnp


class Bounds(NamedTuple):
  """What must hold of a proposal, [B] float32 each.

  Attributes:
    log_z_low: log of a lower bound of Z.
    log_z_high: of an upper bound.
    log_ratio: log M.
    tv: of the proposal.
  """
  log_z_low: jax.Array
  log_z_high: jax.Array
  log_ratio: jax.Array
  tv: jax.Array

  def tv_after(self, num_steps: int) -> jax.Array:
    """Returns the bound of the TV of a chain of so many steps, [B]."""
    return jnp.minimum(self.tv, (-jnp.expm1(-self.log_ratio))**num_steps)


def bounds(log_q: jax.Array, log_low: jax.Array, log_high: jax.Array
           ) -> Bounds:
  """Returns the Bounds of a proposal.

  Args:
    log_q: [B, F] float32, log masses of its cells, -inf for none.
    log_low: [B, F] float32, logs of lower bounds of their true masses.
    log_high: [B, F] float32, of upper bounds.
  """
  is_cell = log_q > -jnp.inf
  most = jnp.max(jnp.where(is_cell, log_high - log_q, -jnp.inf), axis=1)
  least = jnp.min(jnp.where(is_cell, log_low - log_q, jnp.inf), axis=1)
  total = lambda logs: jax.nn.logsumexp(
      jnp.where(is_cell, logs, -jnp.inf), axis=1)
  low = total(log_low)
  return Bounds(low, total(log_high), most + total(log_q) - low,
                jnp.tanh((most - least) / 4))


def total_variation(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """Returns 1/2 sum |P - Q| over cells, [B], of log masses [B, F]."""
  return 0.5 * jnp.sum(jnp.abs(
      jax.nn.softmax(log_p, axis=1) - jax.nn.softmax(log_q, axis=1)), axis=1)


def after_metropolis(log_q: jax.Array, log_p: jax.Array, num_steps: int
                     ) -> jax.Array:
  """Returns the distribution of a chain of independence Metropolis, [B, F].

  Exact, by the transition matrix: from p the mass that comes to cell i is
  q_i (sum of p_j over w_j <= w_i + w_i sum of p_j / w_j over w_j > w_i), and
  what leaves it p_i (sum of q_j over w_j >= w_i + 1 / w_i sum of q_j w_j over
  w_j < w_i); sorted by w, both are running sums.

  Args:
    log_q: [B, F] float32, log masses of what the chain starts from and
      proposes, -inf for no cell.
    log_p: [B, F] float32, of what it leaves invariant.
    num_steps: t.
  """
  q, p = jax.nn.softmax(log_q, axis=1), jax.nn.softmax(log_p, axis=1)
  weight = jnp.where(q > 0, p / jnp.maximum(q, 1e-37), 0.)
  order = jnp.argsort(weight, axis=1)
  q, w = (jnp.take_along_axis(a, order, axis=1) for a in (q, weight))
  inverse = 1 / jnp.maximum(w, 1e-37)
  upto = lambda a: jnp.cumsum(a, axis=1)
  above = lambda a: jnp.cumsum(a[:, ::-1], axis=1)[:, ::-1] - a

  def step(_, now):
    came = q * (upto(now) + w * above(jnp.where(w > 0, now * inverse, 0.)))
    left = now * (above(q) + q + inverse * (upto(q * w) - q * w))
    return now + came - jnp.where(w > 0, left, now)

  now = jax.lax.fori_loop(0, num_steps, step, q)
  back = jnp.argsort(order, axis=1)
  return jnp.take_along_axis(now, back, axis=1)
