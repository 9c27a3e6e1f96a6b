"""What the inspect stage finds of faults that were planted into photo sets."""
