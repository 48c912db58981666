"""Node -> Node macros: everything that is not a primitive op, by theme."""
