"""What is trained: the recipe, its rules and its units. Imports no torch."""
