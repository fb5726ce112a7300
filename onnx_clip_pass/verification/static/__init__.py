"""The original and the rewritten model, compared without running them."""
