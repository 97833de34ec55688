"""How much each unit matters: evidence from weights and data, and criteria that weigh it."""
