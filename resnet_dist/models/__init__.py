"""Networks, their initialisation and their batch norm."""
