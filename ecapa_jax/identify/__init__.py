"""Who is it: enrolled speakers in one file, searched exactly."""
