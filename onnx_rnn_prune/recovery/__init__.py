"""How the kept weights make up for what was cut."""
