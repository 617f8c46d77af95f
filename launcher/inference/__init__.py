"""Using trained models: evaluate, predict, export."""
