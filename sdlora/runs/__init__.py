"""A run's folder: layout, checkpoints, state, event log. Loads no torch."""
