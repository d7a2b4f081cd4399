"""From a plan to a schedule: pure and seeded. Says what to send and when, never how.

One seed fixes everything; arrivals, lengths and content draw from separate streams, so that one can change without the
others. Lengths depend on the place in their sequence, and steps of a search go on in it where others ended.
"""
