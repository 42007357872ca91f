"""Statistics as pure functions: intervals, win rates, length control, calibration, strengths of several policies.
Nothing here knows a file or a stage.
"""
