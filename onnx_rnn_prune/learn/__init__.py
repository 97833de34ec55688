"""Learning from the original: a graph in PyTorch, with gradients, and what is trained with it.

PyTorch is an extra; only `require_torch` may be imported where it is missing.
"""
