"""Texts that are nearly the same: how far two resemble (resemblance), which of many do (near), and which rows that may
be trained on are left out for it (training, rows)."""
