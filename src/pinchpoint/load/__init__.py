"""The load engine: a stored schedule in, raw records out.

It captures and does nothing else: no statistics, no SLOs, no policy. Latency counts from the scheduled instant, so a
generator that falls behind shows up as latency and does not vanish (coordinated omission); the instant sent is kept
beside it.
"""
