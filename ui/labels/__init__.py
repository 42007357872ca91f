"""Labels: the store's tables, and the one service that writes what people say. Labels come in and go out here
(exchange), and people vote on comparisons (votes).
"""
