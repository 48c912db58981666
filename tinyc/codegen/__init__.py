"""Code generation: loop trees to loop IR, schedules, and text for each target."""
