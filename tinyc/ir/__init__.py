"""The Graph IR and the loop IR: what tinyc compiles, and what it means."""
