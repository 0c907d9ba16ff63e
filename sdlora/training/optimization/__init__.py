"""How weights change in a step: optimizers, learning rates, number types, moving averages."""
