"""The recorded gradients held to the slopes of the loss."""
