"""Facts that several rooms share, each once."""

from __future__ import annotations

MIB = 2**20
GIB = 2**30

LATENT_FACTOR = 8
"""Pixels along an edge that become one latent: the three halvings of Stable Diffusion's VAE."""
