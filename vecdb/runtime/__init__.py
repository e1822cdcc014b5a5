"""What a process has: its clock, its kernel threads, its memory and disk, its metrics, traces and logs."""
