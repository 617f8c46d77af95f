"""What follows a failed attempt: its classification, the retry decision, records and notifications."""
