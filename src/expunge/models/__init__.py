"""The network: loading, where its parts are, log-probabilities, hooks, activations, checkpoints."""
