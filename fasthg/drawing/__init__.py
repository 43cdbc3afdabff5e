"""How parts are drawn: one palette and one set of marks for all pictures; text, legends, sheets."""
