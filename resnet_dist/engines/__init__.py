"""What turns a batch into an optimizer step."""
