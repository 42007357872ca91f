"""People: accounts, sign-in, the guard, which refuses every path that is not allowed by name, and the limits on
connections, which hold before any of our code runs.
"""
