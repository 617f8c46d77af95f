"""What kind of failure ended an attempt, whether there is another, and what is recorded."""
