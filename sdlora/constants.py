"""Facts that several rooms share, each once."""

from __future__ import annotations

MIB = 2**20
GIB = 2**30

LATENT_FACTOR = 8
"""Pixels along an edge that become one latent: the three halvings of Stable Diffusion's VAE."""
LARGEST_EDGE_PX = 8192
"""More than that no picture is trained or generated with."""

SIGMA_MIN, SIGMA_MAX = 0.002, 120.0
"""Least and largest noise of CosXL, as multiples of the image's spread."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
