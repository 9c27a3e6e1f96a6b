"""Search a recipe's keys with Optuna, on validation only, most trials on a small budget."""
