"""Masked Autoencoders in JAX."""
