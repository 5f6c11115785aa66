"""The job file: schema, YAML loading with line-numbered errors, scales."""
