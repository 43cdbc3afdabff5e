"""How parts are drawn: one palette and one set of marks for every picture."""
