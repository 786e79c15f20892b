"""Runs guards: fits, saves and attaches them, and tells them what each forward pass reads.

`session`, `forward_pass`, `query`, `abstain`, `instruct`, `full_batch_view` and `random_bits` are below the methods, which are
built on them; `life`, `canaries`, `published`, `proxy` and `runner` are above the methods, which they fit, save, read and attach.
"""
