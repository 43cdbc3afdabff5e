"""Which frames of films to label next, and what labelling tools open.

`doubts` measures how doubtful each frame's poses are, `second_look` looks at candidates once more,
`labelled` knows the frames that are labelled already, `choose` picks, `folder` and the `write_*`
modules write, and `suggest` does all of it for some films.
"""
