"""Engines: data-parallel training with DDP or ZeRO. Each turns micro-batches into an optimizer step."""
