"""The compare stage: policies answer held-out prompts, judges say which answer is better, and a verdict is drawn.
Nothing here is imported by the align stage, or imports it.
"""
