"""Faster arithmetic for weights that never change, on processors: what torch does anew at every call is done once."""
