"""How good a run's checkpoints are: the images they make, scores of them, a recommendation, problem images."""
