"""Where labels come from besides people: a rubric, a judge, a reward model, a file; and what the stage says of them."""
