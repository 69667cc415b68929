"""What `tempspec fit` does: the loss, its temperatures, the teacher, text that is written while training (floor 5)."""
