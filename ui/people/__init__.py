"""People: accounts, sign-in, and the guard, which refuses every path that is not allowed by name."""
