"""Exports of a result: with its provenance and a card (export), in a form that every engine reads (portable)."""
