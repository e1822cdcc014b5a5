"""What every judge raises."""


class Violation(AssertionError):
    """Something that was promised did not hold."""
