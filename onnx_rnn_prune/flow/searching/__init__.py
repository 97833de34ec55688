"""Finding a cut that a goal asks for: what is tried, in which order, and what is picked."""
