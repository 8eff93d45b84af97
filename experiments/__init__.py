"""Scripts. Importing this package readies the process before jax starts."""

from retrieval_jax import runtime

runtime.configure_allocator()
