"""What pages are made of: training curves and what they say, plots, marked differences, how figures are written."""
