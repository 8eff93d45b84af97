"""From a ConfigDict to objects; the only readers of ConfigDict in the package.

Components never see a config: what is here reads it, once, when a run is built.
"""

from retrieval_jax.factory.datasets import make_dataset
from retrieval_jax.factory.datasets import make_reader
from retrieval_jax.factory.datasets import make_tokenizer
from retrieval_jax.factory.datasets import make_tokens
from retrieval_jax.factory.encoders import base_option
from retrieval_jax.factory.encoders import make_layout
from retrieval_jax.factory.encoders import make_model
from retrieval_jax.factory.encoders import settled
from retrieval_jax.factory.experiment import build
from retrieval_jax.factory.experiment import Experiment
from retrieval_jax.factory.methods import make_method
from retrieval_jax.factory.registries import CORRECTORS
from retrieval_jax.factory.registries import READERS
from retrieval_jax.factory.registries import SAMPLERS
