"""The steps of a prune, in this order: opening, feeding, studying, choice, recovery, stages,
finish."""
