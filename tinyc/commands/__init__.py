"""The larger commands of the console, a module each, which `tinyc.__main__` loads when asked."""
