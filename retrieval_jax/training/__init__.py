"""Training: the state, the loop and all that goes around a step."""

from retrieval_jax.training.checkpoint import Best
from retrieval_jax.training.checkpoint import check_same_config
from retrieval_jax.training.checkpoint import Checkpoints
from retrieval_jax.training.checkpoint import DamagedError
from retrieval_jax.training.hooks import BestHook
from retrieval_jax.training.hooks import CheckpointHook
from retrieval_jax.training.hooks import DiagnosticsHook
from retrieval_jax.training.hooks import EvaluateHook
from retrieval_jax.training.hooks import Hook
from retrieval_jax.training.hooks import LogHook
from retrieval_jax.training.hooks import ProfileHook
from retrieval_jax.training.hooks import ProgressHook
from retrieval_jax.training.hooks import ReencodeHook
from retrieval_jax.training.loop import train
from retrieval_jax.training.loop import TrainingRun
from retrieval_jax.training.meter import Meter
from retrieval_jax.training.meter import num_bytes
from retrieval_jax.training.metric_writer import MetricWriter
from retrieval_jax.training.optimizer import make_optimizer
from retrieval_jax.training.signals import StopSignal
from retrieval_jax.training.state import abstract
from retrieval_jax.training.state import TrainState
