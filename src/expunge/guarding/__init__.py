"""The runtime of guards: what a forward pass is about, what a guard does to it, and a guard's life from fitting to detaching.

`session`, `forward_pass`, `query`, `abstain`, `full_batch_view` and `random_bits` are below the methods, which are built on
them; `life`, `canaries`, `published` and `runner` are above the methods, which they fit, save, read and attach.
"""
