"""Captions written by a model. `run.caption_folder` does a whole dataset."""
