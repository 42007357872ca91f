"""Chat templates: which one writes the conversations of a model, and what it renders."""
