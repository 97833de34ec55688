"""Models drawn at random, and what is checked of each."""
