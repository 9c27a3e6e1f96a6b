"""Look at the data: near-duplicates, wrong labels, and the folds that validation uses."""
