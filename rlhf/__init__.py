"""Alignment and its measurement: SFT policy + preferences -> aligned policy -> verdict."""
