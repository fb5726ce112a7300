"""Both models, run with their gradients as outputs, and their clips run alone."""
