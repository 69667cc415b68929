"""Pure tensor functions: divergences, schedules, sampling, acceptance, verification, noise (floor 1)."""
