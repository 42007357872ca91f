"""Parts of pages: training curves with their diagnoses, plots, marked differences, number formats."""
