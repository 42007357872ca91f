"""The report card of a reward model: its figures (evaluate) over prompts (shares), what they are compared with
(baselines, ceiling), spoilt answers (stress), the findings (doubts), and the page."""
