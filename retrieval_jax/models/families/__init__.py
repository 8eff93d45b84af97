"""Published architectures: a file per family, found by `model_type`.

A family says how its config.json becomes one of our configs and back, and
where each of our parameters is in its checkpoints. The config it reads has
`vocab_size`, `hidden_size`, `num_layers`, `max_positions`, `pad_id`, `dtype`,
`remat`, `model_type`, `flops(length)` and `module()`, a flax module called with
tokens and their vectors; that is all that the rest of the package knows of an
architecture. A new one (a decoder, say) is a module, a file here and a line:
"""

from retrieval_jax.models.families import bert
from retrieval_jax.models.families import modern
from retrieval_jax.models.families import static
from retrieval_jax.models.families import t5
from retrieval_jax.models.families.family import Family

FAMILIES = {**bert.FAMILIES, **modern.FAMILIES, 'static': static.FAMILY,
            't5': t5.FAMILY}
"""model_type of config.json -> Family."""
