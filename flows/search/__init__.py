"""Search a recipe's keys with Optuna, on validation only: many trials, of which only the promising get the full budget."""
