"""Code that all commands share (commands), and `trueup keys` (keys). The parser is trueup/cli.py."""
