"""The admin's figures: agreement with intervals, progress, drift. They are updated while people label."""
