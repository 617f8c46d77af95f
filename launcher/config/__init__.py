"""From a YAML file to a frozen run config: reading, rules, reference."""
