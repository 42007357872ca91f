"""Labels: the store's tables, and the one service that writes people's judgements; import and export (exchange), and
votes on comparisons (votes).
"""
