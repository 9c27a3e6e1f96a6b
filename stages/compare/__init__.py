"""Compare all recipes in one table and one picture, beside the published row."""
