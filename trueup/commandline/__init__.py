"""Code that all commands share (commands), `trueup keys` (keys), and a stage on several processes (launch). The parser
is trueup/cli.py."""
