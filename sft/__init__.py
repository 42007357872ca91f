"""Supervised fine-tuning: demonstrations -> SFT policy -> candidate answers."""
