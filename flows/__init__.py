"""Orders the stages by name and runs them: plan, run, stop, retry, schedule. Knows DVC and Prefect, never a stage's code."""
