"""From a batch to its loss."""
