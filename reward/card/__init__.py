"""The report card of a reward model: its figures (evaluate) over prompts (shares), what they are compared with
(baselines, ceiling), spoilt answers (stress), and the findings (doubts)."""
