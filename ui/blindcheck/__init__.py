"""The check that labelling is blind: it labels a copy of the store to its end and searches all that the server sent."""
