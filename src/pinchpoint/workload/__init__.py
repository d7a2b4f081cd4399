"""From a plan to a schedule: pure and seeded. Says what to send and when, never how.

One seed fixes everything; arrivals, lengths and content draw from separate streams, so that one can change without the
others. Lengths do not depend on the step, so two steps of a search differ in their rate and in nothing else.
"""
