"""What people see of a run: one terminal screen, a live view, one HTML file, JSON.

Not for judging: every figure comes from a `Verdict` or a `RunView`. Modules here never read each other's output.
"""
