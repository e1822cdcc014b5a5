"""What a process has: its clock, its kernel threads, its memory and disk."""
