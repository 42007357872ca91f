"""Texts that are nearly the same: how far two resemble (resemblance), which of many do (near), which only fill the same
form (forms), and which rows that may be trained on are left out for it (training, rows); and which share words with
what the model is examined on (contamination, exams)."""
