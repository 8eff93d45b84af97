#!/bin/bash
# On all hosts of a Cloud TPU pod slice, from a machine with gcloud:
#
#   docs/clusters/tpu_pod.sh NAME ZONE --config=configs/stale.py \
#       --workdir=/shared/runs/stale
#
# The hosts have this repository in ~/retrieval_jax with a .venv of it and
# jax[tpu], and one file system at /shared (Filestore, say). --distributed=on has
# jax ask the machine about the others.
set -euo pipefail
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  cd retrieval_jax &&
  .venv/bin/python -m experiments.train --distributed=on $(printf '%q ' "$@")"
