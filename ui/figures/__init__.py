"""The admin's figures: agreement with intervals, progress, drift, kept up to date while people label."""
