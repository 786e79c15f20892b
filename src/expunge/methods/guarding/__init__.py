"""Guards: at inference, with the weights left as they are."""
