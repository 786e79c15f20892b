"""The runtime of guards: fitted on a model, saved as small tensors, attached to that same model, checked and detached."""
