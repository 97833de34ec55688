"""The steps of a prune: opening, feeding, studying, choosing, recovery, finish with its stages.

`request` and `treatment` are what a user asks for: what is cut, and what is done then.
"""
