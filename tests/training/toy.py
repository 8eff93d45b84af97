"""A linear model with a table, small enough to train in a unit test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import types
from retrieval_jax.training import optimizer
from retrieval_jax.training import state as state_lib

DIM = 3
ROWS = 16


def mesh(num_devices):
  return jax.make_mesh(
      (num_devices,), ('data',), axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:num_devices])


def adam(total_steps=20, **kwargs):
  options = dict(
      learning_rate=0.1, warmup_steps=2, total_steps=total_steps,
      schedule='linear', weight_decay=0.01, b1=0.9, b2=0.999, eps=1e-8,
      max_grad_norm=1.0) | kwargs
  return optimizer.make_optimizer(**options)


def shardings(state, num_devices):
  """Table rows over the mesh, all else on every device."""
  devices = mesh(num_devices)
  replicated = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())
  rows = jax.sharding.NamedSharding(
      devices, jax.sharding.PartitionSpec('data'))
  return state_lib.TrainState(
      step=replicated,
      params=jax.tree.map(lambda _: replicated, state.params),
      opt_state=jax.tree.map(lambda _: replicated, state.opt_state),
      table=jax.tree.map(lambda _: rows, state.table),
      corrector=jax.tree.map(lambda _: replicated, state.corrector),
      sampler=jax.tree.map(lambda _: replicated, state.sampler))


def init(key):
  params = {'layer': {'kernel': jax.random.normal(key, (DIM, DIM)),
                      'bias': jnp.zeros((DIM,))},
            'log_scale': jnp.zeros(())}
  table = types.TargetTable(
      embeddings=jnp.zeros((ROWS, DIM)), ids=jnp.arange(ROWS),
      written=jnp.zeros((ROWS,), jnp.int32), rows_are_ids=True)
  return state_lib.TrainState(
      step=jnp.zeros((), jnp.int32), params=params,
      opt_state=adam()[0].init(params), table=table,
      corrector={'weight': jnp.eye(DIM)}, sampler=())


def make_state(num_devices=1):
  shapes = jax.eval_shape(init, jax.random.key(0))
  make = jax.jit(init, out_shardings=shardings(shapes, num_devices))
  return make(jax.random.key(0))


@functools.cache
def make_step(num_devices=1):
  """Returns the jitted step, whose state keeps its shardings."""
  shapes = jax.eval_shape(init, jax.random.key(0))
  return jax.jit(step, donate_argnums=0,
                 out_shardings=(shardings(shapes, num_devices), None))


def step(state, batch):
  """Fits the table's rows and a target; writes one row a step."""
  def loss(params):
    layer = params['layer']
    out = batch @ layer['kernel'] + layer['bias'][None]
    out = out * jnp.exp(params['log_scale'])
    return jnp.mean((out - jnp.roll(batch, 1, axis=-1))**2), out
  (nll, out), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
  updates, opt_state = adam()[0].update(grads, state.opt_state, state.params)
  params = jax.tree.map(jnp.add, state.params, updates)
  row = state.step % ROWS
  table = types.TargetTable(
      embeddings=state.table.embeddings.at[row].set(out[0]),
      ids=state.table.ids, written=state.table.written.at[row].set(state.step),
      rows_are_ids=True)
  state = state_lib.TrainState(state.step + 1, params, opt_state, table,
                               state.corrector, state.sampler)
  return state, {'nll': nll, 'table_norm': jnp.sum(table.embeddings**2)}


def batches(start_step, num_devices=1):
  """Yields the batch of each step, a function of the step alone."""
  place = jax.sharding.NamedSharding(
      mesh(num_devices), jax.sharding.PartitionSpec())
  step = start_step
  while True:
    batch = np.random.default_rng(step).normal(size=(4, DIM))
    yield jax.device_put(batch.astype(np.float32), place)
    step += 1
