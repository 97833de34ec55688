"""Which units stay: as asked, by scores; as training chose; or all but what is superfluous."""
