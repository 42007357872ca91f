"""Is labelling blind? A copy of the store is labelled to its end, and everything that the server sent is searched."""
