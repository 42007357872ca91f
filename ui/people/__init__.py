"""People: accounts, sign-in, and the guard that lets nothing pass which is not allowed by name."""
