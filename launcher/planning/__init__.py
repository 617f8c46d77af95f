"""What a config will take: time, cost, accuracy; each with its evidence."""
