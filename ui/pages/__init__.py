"""The pages and the API behind them: labelling, comparing, a run, its lineage, and any prompt to any policy."""
