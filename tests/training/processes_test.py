"""Two real processes on loopback train exactly like one."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

from absl.testing import absltest
import numpy as np

from retrieval_jax import sharding
from tests import helpers
from tests.training import step_test

_PROGRAM = """
import json, sys
import jax
index, port, *names = sys.argv[1:]
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(
    coordinator_address=f'127.0.0.1:{port}', num_processes=2,
    process_id=int(index))
from retrieval_jax import sharding
from tests.training import processes_test
mesh = sharding.make_mesh()
assert mesh.shape['data'] == 4 and jax.process_count() == 2
print('RESULT', json.dumps(
    {name: processes_test.course(name, mesh) for name in names}))
"""

NAMES = 'stale', 'ring'


def course(name, mesh):
  """Returns (losses, rows drawn, anchors) by step; of a ring under an MLP."""
  methods, rows, probed = step_test.many_methods(mesh), [], []
  method = methods[name]
  if name == 'ring':
    method = dataclasses.replace(method, corrector=methods['mlp'].corrector)

  def keep(state, proposal, probes):
    del state
    rows.append(np.asarray(proposal.rows).tolist())
    probed.append(np.asarray(probes).tolist())

  _, history = helpers.train(
      method, mesh, num_steps=3, each=keep,
      table_=step_test.start_table(name, mesh))
  return [float(m['nll']) for m in history], rows, probed


class ProcessesTest(absltest.TestCase):

  def test_two_processes_draw_the_rows_and_have_the_losses_of_one(self):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = str(free.getsockname()[1])
    environment = dict(os.environ, NPROC='32', JAX_PLATFORMS='cpu')
    running = [
        subprocess.Popen(
            [sys.executable, '-c', _PROGRAM, str(i), port, *NAMES],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment) for i in range(2)]
    try:
      outputs = [process.communicate(timeout=300)[0] for process in running]
    finally:
      for process in running:
        process.kill()
    for process, output in zip(running, outputs):
      self.assertEqual(process.returncode, 0, output)
    found = [json.loads(next(
        line for line in output.splitlines() if line.startswith('RESULT')
    )[len('RESULT '):]) for output in outputs]
    self.assertEqual(found[0], found[1])

    # With as many devices: the capacity is the same.
    mesh = sharding.make_mesh(4)
    for name in NAMES:
      with self.subTest(name):
        losses, *rows = course(name, mesh)
        self.assertEqual(found[0][name][1:], rows)
        np.testing.assert_allclose(found[0][name][0], losses, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
