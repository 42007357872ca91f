"""Sources of labels besides people: a rubric, a judge, a reward model, a file; and the stage's report on labels."""
