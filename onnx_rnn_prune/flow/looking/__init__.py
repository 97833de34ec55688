"""Looking at models without changing them: what they hold, how far apart they are, how fast."""
