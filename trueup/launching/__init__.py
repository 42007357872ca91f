"""The processes that train a stage together: how many there are, which one this is, and what they agree on
(processes)."""
