"""What holds for all tests."""

from hypothesis import settings

# How long an example takes says how busy the machine is; what a test promises is never a time.
settings.register_profile("vecdb", deadline=None, print_blob=True)
settings.load_profile("vecdb")
