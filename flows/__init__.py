"""Order the stages by name and run them: plan, run, stop, retry, schedule, sweep, promote."""
